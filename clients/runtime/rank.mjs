/**
 * What a device recommends: node rank.mjs ME.peel [--top 10] [--budget BYTES]
 *
 * Prints rank, id, score and, where it has one, title, with tabs between. Ids and titles are from ME.items.json where it
 * is there (docs/artefact.md), else ids are item numbers, or catalogue rows where blocks are of item groups. A budget
 * drops blocks first.
 */

import { existsSync, readFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { named } from "./catalogue.mjs";
import { Peel, PeelError } from "./peel.mjs";

const USAGE = "usage: node rank.mjs ME.peel [--top 10] [--budget BYTES]";

function asked() {
  let parsed;
  try {
    const options = { top: { type: "string", default: "10" }, budget: { type: "string" } };
    parsed = parseArgs({ options, allowPositionals: true });
  } catch (error) {
    throw new PeelError(`${error.message.split("\n")[0]}; ${USAGE}`);
  }
  const { values, positionals } = parsed;
  if (positionals.length !== 1) throw new PeelError(USAGE);
  const number = (name) => {
    if (values[name] === undefined) return undefined;
    if (!/^\d{1,15}$/.test(values[name])) throw new PeelError(`--${name}: ${values[name]} is not a whole number`);
    return Number(values[name]);
  };
  return { file: positionals[0], top: number("top"), budget: number("budget") };
}

function sideFile(file) {
  const side = `${file.replace(/\.peel$/, "")}.items.json`;
  if (!existsSync(side)) return [side, {}];
  try {
    return [side, Object(JSON.parse(readFileSync(side, "utf8")))];
  } catch (error) {
    throw new PeelError(`${side}: cannot be read (${error.message.split("\n")[0]})`);
  }
}

function inFile(file, answer) {
  try {
    return answer();
  } catch (error) {
    throw error instanceof PeelError || error.code ? new PeelError(`${file}: ${error.message}`) : error;
  }
}

function main() {
  const { file, top, budget } = asked();
  let me = inFile(file, () => new Peel(readFileSync(file)));
  if (budget !== undefined) me = new Peel(me.shrink(budget));
  const [side, told] = sideFile(file);
  const { idOf, titleOf, seenRows } = inFile(side, () => named(me, told));
  const { rows, scores } = me.top(top, seenRows);
  const lines = rows.map((row, i) => [i + 1, idOf(row), scores[i].toFixed(6), titleOf(row)]);
  process.stdout.write(lines.map((line) => `${line.join("\t").trimEnd()}\n`).join(""));
}

try {
  main();
} catch (error) {
  if (!(error instanceof PeelError)) throw error;
  process.stderr.write(`rank: error: ${error.message}\n`);
  process.exitCode = 2;
}
