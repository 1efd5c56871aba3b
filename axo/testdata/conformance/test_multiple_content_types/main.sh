echo "Multiple content types test:"
echo iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC | base64 -d >/tmp/dot.png
echo '{"test":"data","value":123}' >/tmp/data.json
