# Counts the levels in $LOG and prints the first $1 errors, as JSON.
set -eu
printf '%s\n' "$LOG" | awk -v show="$1" '
	function quoted(s) {
		gsub(/\\/, "\\\\", s)
		gsub(/"/, "\\\"", s)
		gsub(/\t/, "\\t", s)
		gsub(/[[:cntrl:]]/, " ", s)
		return "\"" s "\""
	}
	{ line = tolower($0) }
	line ~ /(^|[^a-z])(error|fatal|panic)([^a-z]|$)/ {
		n["error"]++
		if (shown < show) list = list (shown++ ? "," : "") quoted($0)
		next
	}
	line ~ /(^|[^a-z])warn(ing)?([^a-z]|$)/ { n["warn"]++; next }
	line ~ /(^|[^a-z])info([^a-z]|$)/ { n["info"]++; next }
	line ~ /(^|[^a-z])debug([^a-z]|$)/ { n["debug"]++ }
	END {
		printf "{\"error\":%d,\"warn\":%d,\"info\":%d,\"debug\":%d,\"first_errors\":[%s]}\n", n["error"], n["warn"], n["info"], n["debug"], list
	}'
