// Command nested runs the tests of virtual machines on KVM where there is none: in
// a machine whose processor, emulated by QEMU, has AMD's virtualization (SVM),
// which Linux' kvm_amd drives as if it were real. See package inside,
// `make test-kvm-nested` and `make test-firecracker`.
package main
