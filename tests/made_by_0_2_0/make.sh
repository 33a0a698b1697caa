# The searches of README.md. Run it as said there: it renames the host, and leaves `studies` in the working directory.
set -e
hostname machine
mount --bind boot_id /proc/sys/kernel/random/boot_id
search="/tmp/v0.2.0/.venv/bin/python -m search"
export FMNIST_DATA=digits
$search run tiny.toml --workers 1 --keep 1
$search gc tiny.finalists --keep 1
$search run networks.toml --workers 1
$search run stopped.toml --workers 1 &
until ls studies/stopped/checkpoints/trial-*.pt; do sleep 0.02; done 2> /dev/null
kill $!
wait $! || true  # 130: it was stopped
rm studies/*/report.html studies/studies.db.lock
python3 -c 'import sqlite3; sqlite3.connect("studies/studies.db").execute("VACUUM")'
