#!/bin/sh
# Builds a Debian package of programs that are built: deb.sh BIN OUT [VERSION]. BIN has
# axo, and axo-wasmtime if it is to be in. The same programs make the same package, byte
# for byte: its times are SOURCE_DATE_EPOCH, which is that of the last commit where it is
# not set. XZ is the level of compression; less is faster.
set -eu
bin=$1 out=$2
here=$(dirname "$0")
version=${3:-0.1.0~$(git -C "$here" log -1 --format=%cd.%h --date=format:%Y%m%d)}
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git -C "$here" log -1 --format=%ct)}
export SOURCE_DATE_EPOCH
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 0755 "$root"
umask 022

install -D -m 0755 "$bin/axo" "$root/usr/bin/axo"
if [ -e "$bin/axo-wasmtime" ]; then
	install -D -m 0755 "$bin/axo-wasmtime" "$root/usr/bin/axo-wasmtime"
fi
for unit in axo.service axo.socket axo.slice; do
	install -D -m 0644 "$here/$unit" "$root/lib/systemd/system/$unit"
done
install -D -m 0644 "$here/config.toml" "$root/etc/axo/config.toml"
install -D -m 0644 "$here/../LICENSE" "$root/usr/share/doc/axo/copyright"
gzip -9 -n -c "$here/../CHANGELOG.md" >"$root/usr/share/doc/axo/changelog.gz"

mkdir "$root/DEBIAN"
cat >"$root/DEBIAN/control" <<EOF
Package: axo
Version: $version
Architecture: $(dpkg --print-architecture)
Maintainer: The Axocoatl Isolation authors <noreply@axocoatl.invalid>
Section: admin
Priority: optional
Installed-Size: $(du -sk "$root" | cut -f1)
Recommends: uidmap
Suggests: qemu-system-x86, crun
Description: isolation of code that agents run
 axo runs programs in WebAssembly, containers and virtual machines, whichever is the
 strongest that the host really has, and tells the truth about how they ended. It is a
 command and a daemon. The daemon is not started by the package:
 systemctl enable --now axo.socket axo.service
EOF
echo /etc/axo/config.toml >"$root/DEBIAN/conffiles"
cat >"$root/DEBIAN/postinst" <<'EOF'
#!/bin/sh
set -e
if [ "$1" = configure ] && [ -d /run/systemd/system ]; then
	systemctl daemon-reload
	# Sandboxes go on meanwhile.
	systemctl try-restart axo.service
fi
EOF
cat >"$root/DEBIAN/prerm" <<'EOF'
#!/bin/sh
set -e
if [ "$1" = remove ]; then
	if [ -d /run/systemd/system ]; then
		systemctl disable --now axo.socket axo.service
	fi
	echo "axo: sandboxes that stay, images and keys are left in /var/lib/axo."
fi
EOF
cat >"$root/DEBIAN/postrm" <<'EOF'
#!/bin/sh
set -e
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
fi
EOF
chmod 0755 "$root/DEBIAN/postinst" "$root/DEBIAN/prerm" "$root/DEBIAN/postrm"
(cd "$root" && find usr lib -type f | LC_ALL=C sort | xargs md5sum) >"$root/DEBIAN/md5sums"

# The number of threads would show in the result.
dpkg-deb --root-owner-group --threads-max=1 -Zxz -z"${XZ:-6}" --build "$root" "$out" >/dev/null
