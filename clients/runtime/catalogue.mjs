/**
 * From catalogue rows to items and back, where blocks are of item groups: the side file says which group an item has.
 */

import { PeelError } from "./peel.mjs";

const IV = [
  0x6a09e667f3bcc908n, 0xbb67ae8584caa73bn, 0x3c6ef372fe94f82bn, 0xa54ff53a5f1d36f1n,
  0x510e527fade682d1n, 0x9b05688c2b3e6c1fn, 0x1f83d9abfb41bd6bn, 0x5be0cd19137e2179n,
];
const SIGMA = [
  "0123456789abcdef", "ea489fd61c02b753", "b8c052fdae367194", "7931dcbe265a40f8", "905724afe1bc683d",
  "2c6a0b834d75fe19", "c51fed4a0763928b", "db7ec13950f4862a", "6fe9b308c2d714a5", "a2847615fb9e3cd0",
].map((line) => Array.from(line, (digit) => parseInt(digit, 16)));
const MASK = (1n << 64n) - 1n;

/** BLAKE2b (RFC 7693) with 8 bytes of output, as hexadecimal digits. */
export function blake2b8(bytes) {
  const state = [...IV];
  state[0] ^= 0x01010008n;
  const padded = new Uint8Array(Math.max(1, Math.ceil(bytes.length / 128)) * 128);
  padded.set(bytes);
  const view = new DataView(padded.buffer);
  for (let at = 0; at < padded.length; at += 128) {
    const end = at + 128 >= padded.length;
    const words = Array.from({ length: 16 }, (_, i) => view.getBigUint64(at + 8 * i, true));
    compress(state, words, BigInt(end ? bytes.length : at + 128), end);
  }
  let text = "";
  for (let i = 0n; i < 8n; i += 1n) text += ((state[0] >> (8n * i)) & 255n).toString(16).padStart(2, "0");
  return text;
}

function compress(state, words, length, end) {
  const v = [...state, ...IV];
  v[12] ^= length;
  if (end) v[14] ^= MASK;
  const turned = (value, bits) => (value >> bits) | ((value << (64n - bits)) & MASK);
  const mix = (a, b, c, d, x, y) => {
    v[a] = (v[a] + v[b] + x) & MASK;
    v[d] = turned(v[d] ^ v[a], 32n);
    v[c] = (v[c] + v[d]) & MASK;
    v[b] = turned(v[b] ^ v[c], 24n);
    v[a] = (v[a] + v[b] + y) & MASK;
    v[d] = turned(v[d] ^ v[a], 16n);
    v[c] = (v[c] + v[d]) & MASK;
    v[b] = turned(v[b] ^ v[c], 63n);
  };
  for (let round = 0; round < 12; round += 1) {
    const word = SIGMA[round % 10].map((i) => words[i]);
    for (let i = 0; i < 4; i += 1) mix(i, 4 + i, 8 + i, 12 + i, word[2 * i], word[2 * i + 1]);
    for (let i = 0; i < 4; i += 1) {
      mix(i, 4 + ((i + 1) % 4), 8 + ((i + 2) % 4), 12 + ((i + 3) % 4), word[8 + 2 * i], word[9 + 2 * i]);
    }
  }
  for (let i = 0; i < 8; i += 1) state[i] ^= v[i] ^ v[i + 8];
}

/** The digest of a catalogue whose items have these groups, as an artefact's `catalogue`. */
export function digest(groups) {
  const view = new DataView(new ArrayBuffer(4 * groups.length));
  groups.forEach((group, item) => view.setInt32(4 * item, group, true));
  return blake2b8(new Uint8Array(view.buffer));
}

/**
 * How items are called, from the side file: `ids` and `titles` by item number, a title null where there is none;
 * `seen`, item numbers; `groups`, the group of each item. Without groups, blocks being of item groups, an item is called
 * by its catalogue row throughout. Throws a PeelError where it is of another catalogue.
 */
export function named(me, { ids, titles, seen = [], groups } = {}) {
  const fits = (list, key) => {
    if (list !== undefined && !(Array.isArray(list) && list.length === me.items)) {
      throw new PeelError(`${key}: not a list of ${me.items} entries, one an item`);
    }
  };
  fits(ids, "ids");
  fits(titles, "titles");
  fits(groups, "groups");
  if (!Array.isArray(seen) || !seen.every((item) => Number.isInteger(item) && item >= 0)) {
    throw new PeelError("seen: not a list of item numbers");
  }
  let itemOf = (row) => row;
  let rowOf = itemOf;
  if (groups !== undefined) {
    if (!groups.every(Number.isInteger) || digest(groups) !== me.catalogue) {
      throw new PeelError("groups: of another catalogue than the artefact");
    }
    const items = Uint32Array.from(groups.keys()).sort((a, b) => groups[a] - groups[b] || a - b);
    const rows = new Uint32Array(items.length);
    items.forEach((item, row) => (rows[item] = row));
    itemOf = (row) => items[row];
    rowOf = (item) => rows[item];
  }
  return {
    itemOf,
    rowOf,
    idOf: (row) => (ids === undefined ? itemOf(row) : ids[itemOf(row)]),
    titleOf: (row) => titles?.[itemOf(row)],
    seenRows: seen.filter((item) => item < me.items).map(rowOf),
  };
}
