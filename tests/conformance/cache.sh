#!/usr/bin/env bash
# The public HTTP cache suite (github.com/http-tests/cache-tests) in front of `souk proxy`, in both policies.
#
#   tests/conformance/cache.sh SUITE [SOUK] [POLICY…]
#
# SUITE is a checkout of the suite after `npm install --omit=dev`; nothing of it belongs to this project. SOUK is the binary
# (target/release/souk unless said otherwise). Ends with 1 where a policy falls below what docs/CACHE.md states.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
suite=${1:-}
souk=${2:-$here/../../target/release/souk}
if [ -z "$suite" ] || [ ! -f "$suite/test-engine/cli.mjs" ]; then
  echo "NOT RUN: ${suite:-(no path)} is no checkout of http-tests/cache-tests. Fetch it, run npm install --omit=dev there," >&2
  echo "and name its folder: tests/conformance/cache.sh SUITE" >&2
  exit 2
fi
if [ ! -d "$suite/node_modules/undici" ]; then
  echo "NOT RUN: the suite has no packages yet: run npm install --omit=dev in $suite" >&2
  exit 2
fi
if [ ! -x "$souk" ]; then
  echo "NOT RUN: $souk is not there: cargo build --release -p souk, or name a binary" >&2
  exit 2
fi
suite=$(cd "$suite" && pwd)
souk=$(cd "$(dirname "$souk")" && pwd)/$(basename "$souk")
policies=("${@:3}")
[ ${#policies[@]} -gt 0 ] || policies=(safe strict)

scratch=$(mktemp -d)
started=()
stop() {
  for pid in "${started[@]:-}"; do [ -n "$pid" ] && kill "$pid" 2>/dev/null || true; done
  started=()
}
trap 'stop; rm -rf "$scratch"' EXIT

free_port() {
  node -e 'const s=require("net").createServer().listen(0,"127.0.0.1",()=>{console.log(s.address().port);s.close()})'
}
wait_for() {
  for _ in $(seq 100); do (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null && return; sleep 0.1; done
  echo "nothing listens on port $1 after 10 s" >&2
  cat "$scratch"/*.log >&2
  exit 1
}

failed=0
for policy in "${policies[@]}"; do
  upstream=$(free_port) proxy=$(free_port)
  (cd "$suite" && npm_config_protocol=http npm_config_port=$upstream npm_config_pidfile="$scratch/pid" npm_package_config_id='' \
    exec node test-engine/server/server.mjs) >"$scratch/server.log" 2>&1 &
  started+=($!)
  wait_for "$upstream"
  "$souk" proxy --listen "127.0.0.1:$proxy" --upstream "http://127.0.0.1:$upstream" --policy "$policy" \
    >"$scratch/souk.log" 2>&1 &
  started+=($!)
  wait_for "$proxy"
  (cd "$suite" && npm_config_id='' npm_package_config_id='' npm_config_base="http://127.0.0.1:$proxy" \
    node --no-warnings test-engine/cli.mjs) >"$scratch/$policy.json"
  stop
  node "$here/tally.mjs" "$suite" "$scratch/$policy.json" "$policy" || failed=1
done
exit $failed
