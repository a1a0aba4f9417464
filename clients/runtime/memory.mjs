/**
 * Bytes that one artefact takes, as a line of JSON:
 * node --expose-gc --no-flush-bytecode --max-semi-space-size=1 memory.mjs SMALL.peel ME.peel
 *
 * held: of the JavaScript heap and of array buffers while ME is kept, after collecting garbage. live: the most of both
 * that a garbage collection left while ME was read, checked and ranked; with so small a space for what is new there is one
 * about every megabyte allocated. Before that SMALL is read and ranked, for the code's own sake.
 */

import { readFileSync } from "node:fs";
import { setTimeout } from "node:timers/promises";
import { GCProfiler } from "node:v8";
import { Peel } from "./peel.mjs";

const COPIES = 16; // what a process uses otherwise moves by some ten thousand bytes

async function used() {
  for (let i = 0; i < 4; i += 1) {
    globalThis.gc();
    await setTimeout(20);
  }
  const { heapUsed, external } = process.memoryUsage();
  return heapUsed + external;
}

const [small, file] = process.argv.slice(2);
for (let i = 0; i < 300; i += 1) new Peel(readFileSync(small)).top(10);
const before = await used();
const profiler = new GCProfiler();
profiler.start();
const me = [new Peel(readFileSync(file))];
const best = me[0].top(10).rows.length;
globalThis.gc();
const after = profiler.stop().statistics.map(({ afterGC }) => afterGC.heapStatistics);
const live = Math.max(...after.map(({ usedHeapSize, externalMemory }) => usedHeapSize + externalMemory)) - before;
while (me.length < COPIES) me.push(new Peel(readFileSync(file)));
const held = ((await used()) - before) / me.length;
console.log(JSON.stringify({ held: Math.round(held), live, collections: after.length, best }));
