for p in 0 50 100; do
	echo "{\"progress\": $p, \"total\": 100}" >&2
	sleep 0.05
done
echo done
