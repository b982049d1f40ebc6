# Runs in a privileged container of a Debian root with dockerd, which gets a
# runtime that keeps each config.json and fails, and creates a container for each
# line of cases.txt. What was kept is in /out.
export PATH=/usr/sbin:/usr/bin
PROFILE=/sandbox/profile.json
mkdir /out /empty
cat >/save <<'SAVE'
#!/bin/sh
while [ $# -gt 0 ]; do
	case $1 in --bundle | -b) cp "$2/config.json" /out/last.json ;; esac
	shift
done
exit 1
SAVE
chmod +x /save
dockerd --bridge none --iptables=false --ip6tables=false --ip-forward=false --storage-driver vfs \
	--add-runtime save=/save --default-runtime save >/log 2>&1 &
tries=0
until docker version >/dev/null 2>&1; do
	tries=$((tries + 1))
	[ $tries -lt 300 ] || { cat /log; exit 1; }
	sleep 0.2
done
docker version --format '{{.Server.Version}}' >/out/version
tar -c -C /empty . | docker import - base >/dev/null
tar -c -C /sandbox probe | docker import - probe >/dev/null
docker run -d --runtime runc --name owner --network none --ipc shareable probe /probe sleep >/dev/null || { cat /log; exit 1; }
while read -r name options; do
	case $name in '#'* | '') continue ;; esac
	name=${name%\*}
	case $options in *--network*) ;; *) options="--network none $options" ;; esac
	eval "docker run --rm $options base /probe" >/said 2>&1 </dev/null
	mv /out/last.json "/out/$name.json" || { cat /said; exit 1; }
done </sandbox/cases.txt
