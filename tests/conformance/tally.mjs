// Counts what the public cache suite found: node tally.mjs SUITE RESULTS.json POLICY. Ends with 1 below the floor.
import fs from 'node:fs'
import path from 'node:path'
import { pathToFileURL } from 'node:url'

const [suite, file, policy] = process.argv.slice(2)
const load = (name) => import(pathToFileURL(path.join(suite, name)).href)
const { default: groups } = await load('tests/index.mjs')
const { determineTestResult } = await load('test-engine/lib/results.mjs')
const results = JSON.parse(fs.readFileSync(file))

// What docs/CACHE.md states, by policy.
const floor = { strict: { required: 160, optimal: 104 }, safe: { required: 159, optimal: 86 } }[policy]

const counts = { required: [0, 0], optimal: [0, 0], check: [0, 0] }
const missed = []
for (const group of groups) {
  for (const test of group.tests) {
    if (test.browser_only) continue
    const kind = test.kind ?? 'required'
    // A test that depends on one that failed counts as its own word says, too: only what held is counted.
    const held = determineTestResult(groups, test.id, results, false)[2] === (kind === 'check' ? 'Y' : '✅')
    counts[kind][1] += 1
    if (held) counts[kind][0] += 1
    else missed.push(`${kind.padEnd(9)}${test.id}: ${JSON.stringify(results[test.id])}`)
  }
}

console.log(`policy ${policy}: ` + Object.entries(counts).map(([kind, [held, all]]) => `${kind} ${held} of ${all}`).join(', '))
for (const line of missed.sort()) console.log(`  ${line}`)
if (!floor) process.exit(0)
for (const [kind, least] of Object.entries(floor)) {
  if (counts[kind][0] < least) {
    console.error(`policy ${policy}: ${kind} ${counts[kind][0]} is below the ${least} that docs/CACHE.md states`)
    process.exitCode = 1
  }
}
