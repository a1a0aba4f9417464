// Reads a list of questions about artefacts as JSON, writes a list of answers: many of them in one process.
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const { Peel, PeelError } = await import(pathToFileURL(process.argv[2]));

const bytesOf = (hex) => Uint8Array.from(Buffer.from(hex, "hex"));
const hexOf = (bytes) => Buffer.from(bytes).toString("hex");

function told(me) {
  const width = me.columns / me.slices;
  const ids = [...me.ids()];
  return {
    precision: me.precision,
    id_numbers: me.single ? 1 : 3,
    items: me.items,
    item_groups: me.itemGroups,
    columns: me.columns,
    slices: me.slices,
    user_group: me.userGroup,
    catalogue: me.catalogue,
    user: [...me.user],
    blocks: [...me.blocks],
    first_rows: ids.map(([, first]) => first),
    row_counts: ids.map(([, , count]) => count),
    scales: me.hasScales ? Array.from({ length: me.numPieces }, (_, piece) => me.scale(piece)) : [],
    codes: Array.from({ length: me.numPieces }, (_, piece) => Array.from({ length: width }, (_, c) => me.code(piece, c))),
  };
}

function or(answer) {
  try {
    return answer();
  } catch (error) {
    if (!(error instanceof PeelError)) throw error;
    return { refused: error.message };
  }
}

function answered({ hex, top = [], shrink = [], grow = [] }) {
  // not at the beginning of its buffer, and not aligned
  const whole = new Uint8Array(hex.length / 2 + 4);
  whole.set(bytesOf(hex), 3);
  const me = new Peel(whole.subarray(3, 3 + hex.length / 2));
  const { rows, scores } = me.scores();
  return {
    told: told(me),
    scores: { rows: [...rows], scores: [...scores].map((score) => (Number.isFinite(score) ? score : String(score))) },
    top: top.map(({ n, seen_rows }) => me.top(n, seen_rows).rows),
    shrunk: shrink.map((budget) => or(() => ({ hex: hexOf(me.shrink(budget)) }))),
    grown: grow.map(({ budget_bytes, following, fuller, seen_rows, user }) =>
      or(() => {
        const list = fuller === undefined ? following.map(bytesOf) : new Peel(bytesOf(fuller));
        const { bytes, read } = me.grow(budget_bytes, list, seen_rows, user && bytesOf(user));
        return { hex: hexOf(bytes), read_bytes: read };
      }),
    ),
    listed: [...me.listed()].map(hexOf),
  };
}

const questions = JSON.parse(readFileSync(0, "utf8"));
process.stdout.write(JSON.stringify(questions.map((question) => or(() => answered(question)))));
