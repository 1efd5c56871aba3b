echo "This is an embedded resource content." >/tmp/text.txt
