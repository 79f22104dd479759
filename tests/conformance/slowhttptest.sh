#!/usr/bin/env bash
# slowhttptest (Debian: apt install slowhttptest) against `souk proxy`: slow heads, slow bodies, slow reading, with 1,000
# connections each, and a shopper beside them who asks for a page four times a second.
#
#   tests/conformance/slowhttptest.sh [SOUK] [CONNECTIONS] [SECONDS]
#
# SOUK is the binary (target/release/souk unless said otherwise). Ends with 1 where the shopper is not answered once.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
souk=${1:-$here/../../target/release/souk}
connections=${2:-1000}
seconds=${3:-60}
for tool in slowhttptest curl python3 nginx; do
  command -v "$tool" >/dev/null || { echo "NOT RUN: no $tool" >&2; exit 2; }
done
if [ ! -x "$souk" ]; then
  echo "NOT RUN: $souk is not there: cargo build --release -p souk, or name a binary" >&2
  exit 2
fi
# Two ends of each connection and what is beside them.
ulimit -n $((connections * 2 + 1000)) 2>/dev/null || true

scratch=$(mktemp -d)
started=()
stop() {
  for pid in "${started[@]:-}"; do [ -n "$pid" ] && kill "$pid" 2>/dev/null || true; done
}
trap 'stop; rm -rf "$scratch"' EXIT

free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}
wait_for() {
  for _ in $(seq 100); do (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null && return; sleep 0.1; done
  echo "nothing listens on port $1 after 10 s" >&2
  exit 1
}

upstream=$(free_port) proxy=$(free_port) admin=$(free_port)
mkdir "$scratch/www"
echo page >"$scratch/www/page"
# More than the buffers of a kernel take.
head -c 8000000 /dev/zero >"$scratch/www/large"
# A merchant's server that is not the first to give in: Python's has a listen queue of 5 and a thread for each of 1,000.
cat >"$scratch/nginx.conf" <<CONF
daemon off; master_process off; error_log $scratch/server.log; pid $scratch/nginx.pid;
events { worker_connections 4000; }
http {
  access_log off; sendfile on;
  client_body_temp_path $scratch/t1; proxy_temp_path $scratch/t2; fastcgi_temp_path $scratch/t3;
  uwsgi_temp_path $scratch/t4; scgi_temp_path $scratch/t5;
  server { listen 127.0.0.1:$upstream backlog=2048; root $scratch/www; }
}
CONF
nginx -p "$scratch" -c "$scratch/nginx.conf" 2>/dev/null &
started+=($!)
wait_for "$upstream"
"$souk" proxy --listen "127.0.0.1:$proxy" --admin "127.0.0.1:$admin" --upstream "http://127.0.0.1:$upstream" --log error &
started+=($!)
wait_for "$proxy"
base="http://127.0.0.1:$proxy"

failed=0
attack() {
  local name=$1
  shift
  slowhttptest -c "$connections" -r 200 -l "$seconds" -p 5 "$@" >"$scratch/$name.log" 2>&1 &
  local attacker=$!
  started+=("$attacker")
  local asked=0 unanswered=0 worst=0 time
  while kill -0 "$attacker" 2>/dev/null; do
    asked=$((asked + 1))
    if time=$(curl -sf -o /dev/null -m 5 -w '%{time_total}' "$base/page"); then
      worst=$(printf '%s\n%s\n' "$worst" "$time" | sort -g | tail -1)
    else
      unanswered=$((unanswered + 1))
    fi
    sleep 0.25
  done
  echo "$name: $asked asked beside $connections connections, $unanswered not answered, slowest $worst s"
  sed 's/\x1b\[[0-9;]*m//g' "$scratch/$name.log" | grep -E '^(closed|connected|error|service available):' | tail -4 | sed 's/^/  /' || true
  [ "$unanswered" = 0 ] && [ "$asked" -gt 0 ] || failed=1
}
attack slow-heads -H -i 5 -t GET -u "$base/page" -x 24
attack slow-bodies -B -i 5 -s 8192 -t POST -u "$base/page" -x 10
attack slow-reading -X -w 1 -y 1 -n 5 -z 32 -k 3 -u "$base/large"
curl -sf "http://127.0.0.1:$admin/metrics" | grep -E '^souk_gate_(closed|malformed|turned_away)' | sed 's/^/  /' || true
exit $failed
