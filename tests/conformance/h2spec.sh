#!/usr/bin/env bash
# h2spec (github.com/summerwind/h2spec) against `souk proxy`, in clear text by prior knowledge.
#
#   tests/conformance/h2spec.sh H2SPEC [SOUK]
#
# H2SPEC is the binary; nothing of it belongs to this project. SOUK is the binary (target/release/souk unless said
# otherwise). Ends with 1 where fewer than 145 of its 146 cases pass.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
h2spec=${1:-}
souk=${2:-$here/../../target/release/souk}
passed_min=145
if [ -z "$h2spec" ] || [ ! -x "$h2spec" ]; then
  echo "NOT RUN: ${h2spec:-(no path)} is no h2spec binary. Build it outside this repository and name it:" >&2
  echo "tests/conformance/h2spec.sh H2SPEC [SOUK]" >&2
  exit 2
fi
if [ ! -x "$souk" ]; then
  echo "NOT RUN: $souk is not there: cargo build --release -p souk, or name a binary" >&2
  exit 2
fi
command -v python3 >/dev/null || { echo "NOT RUN: no python3, which is the server behind the proxy" >&2; exit 2; }

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

upstream=$(free_port) proxy=$(free_port)
mkdir "$scratch/www"
head -c 100000 /dev/zero >"$scratch/www/index.html"
python3 -m http.server --bind 127.0.0.1 --directory "$scratch/www" "$upstream" >"$scratch/server.log" 2>&1 &
started+=($!)
wait_for "$upstream"
"$souk" proxy --listen "127.0.0.1:$proxy" --upstream "http://127.0.0.1:$upstream" --log error &
started+=($!)
wait_for "$proxy"

"$h2spec" -h 127.0.0.1 -p "$proxy" -P / -o 5 | tee "$scratch/report" || true
passed=$(sed -n 's/.* tests, \([0-9]*\) passed.*/\1/p' "$scratch/report" | tail -1)
echo "h2spec: ${passed:-0} passed, at least $passed_min are wanted"
[ "${passed:-0}" -ge "$passed_min" ]
