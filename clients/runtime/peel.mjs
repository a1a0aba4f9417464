/**
 * Reads what lies on a device, a .peel file: scores, the best items, smaller and larger files of the same embedding.
 * No dependency; browsers and Node. docs/artefact.md has every byte, docs/runtime.md how to use this.
 */

export const VERSION = 2;
export const HEADER_BYTES = 44;
export const PRECISIONS = ["fp32", "fp16", "int8", "int4"];

/** Why a file, a list or a budget cannot be used, in one line. */
export class PeelError extends Error {
  name = "PeelError";
}

const refused = (why) => new PeelError(`not a stored embedding: ${why}`);
const unfit = (why) => new PeelError(`${why}; ask for the list again`);

/** An elastic embedding, as one file holds it. Keeps the bytes it was given and nothing else. */
export class Peel {
  #bytes;
  #view;

  /** Of an ArrayBuffer or Uint8Array; throws a PeelError unless it is an artefact, whole and consistent. */
  constructor(data) {
    this.#bytes = data instanceof Uint8Array ? data : new Uint8Array(data);
    const { buffer, byteOffset, byteLength } = this.#bytes;
    this.#view = new DataView(buffer, byteOffset, byteLength);
    this.#readHeader();
    this.#checkNumbers();
    this.#checkBlocks();
  }

  #readHeader() {
    const view = this.#view;
    const { length } = this.#bytes;
    if (length < HEADER_BYTES) throw refused(`${length} bytes, where the header alone has ${HEADER_BYTES}`);
    const magic = String.fromCharCode(...this.#part(0, 4));
    if (magic !== "PEEL") throw refused(`it begins with ${JSON.stringify(magic)}, not "PEEL"`);
    const version = view.getUint8(4);
    if (version !== VERSION) throw refused(`format ${version}, where this release reads ${VERSION}`);
    if (checksum(this.#bytes) !== view.getUint32(40, true)) {
      throw refused("its checksum does not match: it was cut off or changed");
    }
    const place = view.getUint8(5);
    if (place >= PRECISIONS.length) throw refused(`precision number ${place}`);
    this.precision = PRECISIONS[place];
    const [numbers, width] = this.#part(6, 2);
    const [items, itemGroups] = [8, 12].map((at) => view.getUint32(at, true));
    const [columns, slices] = [16, 18].map((at) => view.getUint16(at, true));
    if (!items || !itemGroups || !columns || !slices || columns % slices) {
      throw refused(`${items} items, ${itemGroups} item groups, ${columns} columns in ${slices} slices`);
    }
    const needed = Math.max(items, itemGroups * slices) < 65_536 ? 2 : 4;
    this.single = numbers === 1;
    if ((numbers !== 1 && numbers !== 3) || width !== needed || (this.single && itemGroups !== items)) {
      throw refused(`${numbers} numbers of ${width} bytes a block, ${itemGroups} item groups of ${items} items`);
    }
    Object.assign(this, { items, itemGroups, columns, slices });
    this.numBlocks = view.getUint32(20, true);
    this.numPieces = view.getUint32(24, true);
    this.userGroup = view.getUint32(28, true);
    this.catalogue = hex(this.#part(32, 8));
    this.idWidth = width;
    this.idBytes = numbers * width;
    this.sliceColumns = columns / slices;
    this.hasScales = place >= 2;
    this.codeBytes = Math.ceil(this.sliceColumns * [4, 2, 1, 0.5][place]);
    this.pieceBytes = this.codeBytes + (this.hasScales ? 2 : 0);
    this.overheadBytes = HEADER_BYTES + 2 * columns;
    const wanted = this.overheadBytes + this.numBlocks * this.idBytes + this.numPieces * this.pieceBytes;
    if (length !== wanted) throw refused(`${length} bytes, where its header speaks of ${wanted}`);
    this.scalesAt = this.overheadBytes + this.numBlocks * this.idBytes;
    this.codesAt = this.scalesAt + (this.hasScales ? 2 * this.numPieces : 0);
  }

  #checkNumbers() {
    const check = (from, to, width, exponent) => {
      for (let at = from + width - 2; at < to; at += width) {
        if ((~this.#view.getUint16(at, true) & exponent) === 0) throw refused("some of its numbers are not finite");
      }
    };
    check(HEADER_BYTES, this.overheadBytes, 2, 0x7c00);
    check(this.scalesAt, this.codesAt, 2, 0x7c00);
    if (this.precision === "fp16") check(this.codesAt, this.#bytes.length, 2, 0x7c00);
    if (this.precision === "fp32") check(this.codesAt, this.#bytes.length, 4, 0x7f80);
  }

  #checkBlocks() {
    const { numBlocks, numPieces, items, itemGroups, slices } = this;
    let pieces = 0;
    let empty = false;
    for (const [block, first, count] of this.ids()) {
      if (block >= itemGroups * slices || first + count > items) {
        throw refused(`a block beyond ${itemGroups} item groups, ${slices} slices, ${items} items`);
      }
      empty ||= count < 1;
      pieces += count;
    }
    let [before, itsFirst, itsCount] = [-1, 0, 0];
    let agree = true;
    let twice = false;
    for (const place of this.#byBlock()) {
      const [block, first, count] = this.#id(place);
      const same = Math.floor(block / slices) === Math.floor(before / slices);
      agree &&= same ? first === itsFirst && count === itsCount : first >= itsFirst + itsCount;
      twice ||= block === before;
      [before, itsFirst, itsCount] = [block, first, count];
    }
    if (twice || empty || pieces !== numPieces) {
      throw refused(`its ${numBlocks} blocks are not ${numPieces} row pieces of different blocks`);
    }
    if (!agree) throw refused("its blocks do not agree on which rows an item group has");
  }

  /** Number, first catalogue row and rows of the block at a place. */
  #id(place) {
    return idAt(this, this.#view, this.overheadBytes + place * this.idBytes);
  }

  /** Places of the blocks, by block number: by item group, and so by row, then by slice. */
  #byBlock() {
    const blocks = this.blocks;
    return new Uint32Array(blocks.keys()).sort((a, b) => blocks[a] - blocks[b]);
  }

  #half(at) {
    const bits = this.#view.getUint16(at, true);
    const exponent = (bits >> 10) & 31;
    const size = exponent ? (1024 + (bits & 1023)) * 2 ** (exponent - 25) : (bits & 1023) * 2 ** -24;
    return bits & 0x8000 ? -size : size;
  }

  /** The user embedding. */
  get user() {
    return Float32Array.from({ length: this.columns }, (_, i) => this.#half(HEADER_BYTES + 2 * i));
  }

  /** Numbers of the blocks, in the order of their weights. */
  get blocks() {
    return Uint32Array.from({ length: this.numBlocks }, (_, place) => this.#id(place)[0]);
  }

  /** Number of the last block, behind which a device reads on; null where there is none. */
  get lastBlock() {
    return this.numBlocks ? this.#id(this.numBlocks - 1)[0] : null;
  }

  /** Of every block, in the order of their weights: number, first catalogue row, rows. */
  *ids() {
    for (let place = 0; place < this.numBlocks; place += 1) yield this.#id(place);
  }

  /** Scale of a row piece; 1 where there are none. */
  scale(piece) {
    return this.hasScales ? this.#half(this.scalesAt + 2 * piece) : 1;
  }

  /** A number of a row piece before it is scaled. */
  code(piece, column) {
    const at = this.codesAt + piece * this.codeBytes;
    switch (this.precision) {
      case "fp32": return this.#view.getFloat32(at + 4 * column, true);
      case "fp16": return this.#half(at + 2 * column);
      case "int8": return this.#view.getInt8(at + column);
      default: return ((this.#view.getUint8(at + (column >> 1)) >> (4 * (column & 1))) & 15) - 8;
    }
  }

  /**
   * Catalogue rows with a block here, ascending, and their scores.
   * Added up in double, column by column and slice by slice, as every reader does: the same bits everywhere.
   */
  scores() {
    const { numBlocks, slices, sliceColumns } = this;
    const user = this.user;
    const pieceOf = new Uint32Array(numBlocks + 1); // first row piece of each block
    let place = 0;
    for (const [, , count] of this.ids()) pieceOf[(place += 1)] = pieceOf[place - 1] + count;
    const rows = new Uint32Array(this.numPieces);
    const totals = new Float64Array(this.numPieces);
    let start = 0; // of the item group's rows among those found
    let end = 0;
    let last = -1;
    for (const at of this.#byBlock()) {
      const [block, first, count] = this.#id(at);
      const group = Math.floor(block / slices);
      if (group !== last) {
        start = end;
        end += count;
        for (let i = 0; i < count; i += 1) rows[start + i] = first + i;
        last = group;
      }
      const from = (block % slices) * sliceColumns;
      for (let i = 0; i < count; i += 1) {
        const piece = pieceOf[at] + i;
        const scale = this.scale(piece);
        let part = 0;
        for (let c = 0; c < sliceColumns; c += 1) part += this.code(piece, c) * scale * user[from + c];
        totals[start + i] += part;
      }
    }
    return { rows: rows.slice(0, end), scores: new Float32Array(totals.subarray(0, end)) };
  }

  /** The n best catalogue rows, best first (ties: smaller row first), without those that are seen. */
  top(n, seen = []) {
    const without = new Set(seen);
    const { rows, scores } = this.scores();
    const best = [];
    for (let i = 0; i < rows.length && n > 0; i += 1) {
      if (without.has(rows[i]) || scores[i] <= scores[best[n - 1]]) continue;
      let low = 0; // behind all that score as much: rows ascend
      for (let high = best.length; low < high; ) {
        const middle = (low + high) >> 1;
        if (scores[best[middle]] >= scores[i]) low = middle + 1;
        else high = middle;
      }
      best.splice(low, 0, i);
      if (best.length > n) best.pop();
    }
    return { rows: best.map((i) => rows[i]), scores: best.map((i) => scores[i]) };
  }

  /** The file under a smaller budget: the last blocks are dropped until the rest fits. */
  shrink(budgetBytes) {
    let room = budgetBytes - this.overheadBytes;
    if (!(room >= 0)) {
      const least = `header and user embedding (${this.overheadBytes} B)`;
      throw new PeelError(`budget ${budgetBytes} B does not hold ${least}; raise the budget`);
    }
    let blocks = 0;
    let pieces = 0;
    for (const [, , count] of this.ids()) {
      room -= this.idBytes + count * this.pieceBytes;
      if (room < 0) break;
      blocks += 1;
      pieces += count;
    }
    return this.#sealed(blocks, pieces, []);
  }

  /** Blocks from behind one of a number on (null: from the first), each as a server sends it: id, scales, codes. */
  *listed(after = null) {
    let found = after === null;
    let piece = 0;
    let at = this.overheadBytes;
    for (const [block, , count] of this.ids()) {
      if (found) {
        yield joined([
          this.#part(at, this.idBytes),
          this.#part(this.scalesAt + 2 * piece, this.hasScales ? 2 * count : 0),
          this.#part(this.codesAt + piece * this.codeBytes, count * this.codeBytes),
        ]);
      }
      found ||= block === after;
      piece += count;
      at += this.idBytes;
    }
    if (!found) throw unfit(`block ${after} is not in the list that is read on in`);
  }

  /**
   * The file under a larger budget. following: the user group's list from behind the last block held, block after
   * block as `listed` has it, or a fuller file of the same device. It is read up to the id of the first block that is
   * needed and does not fit; blocks whose rows are all seen are passed over. Returns the file, and bytes read.
   */
  grow(budgetBytes, following, seen = []) {
    if (following instanceof Peel) {
      for (const field of ["catalogue", "userGroup", "precision", "items", "columns", "slices"]) {
        const [mine, its] = [this[field], following[field]];
        if (mine !== its) throw unfit(`the fuller file is of ${field} ${its}, this one of ${mine}`);
      }
      following = following.listed(this.lastBlock);
    }
    const known = new Set(seen);
    let room = budgetBytes - this.#bytes.length;
    let read = 0;
    const added = [];
    for (const sent of following) {
      if (sent.length < this.idBytes) throw unfit(`${sent.length} bytes of a block, whose id has ${this.idBytes}`);
      const view = new DataView(sent.buffer, sent.byteOffset, sent.byteLength);
      const [block, first, count] = idAt(this, view, 0);
      if (block >= this.itemGroups * this.slices || count < 1 || first + count > this.items) {
        throw unfit(`block ${block} with rows ${first} to ${first + count} is beyond the catalogue`);
      }
      const bytes = this.idBytes + count * this.pieceBytes;
      let row = first;
      while (known.has(row)) row += 1;
      const needed = row < first + count;
      if (needed && bytes > room) {
        read += this.idBytes;
        break;
      }
      if (sent.length !== bytes) throw unfit(`block ${block} takes ${bytes} bytes, ${sent.length} came`);
      read += bytes;
      if (!needed) continue;
      room -= bytes;
      const codesAt = this.idBytes + (this.hasScales ? 2 * count : 0);
      added.push([sent.subarray(0, this.idBytes), sent.subarray(this.idBytes, codesAt), sent.subarray(codesAt)]);
    }
    const grown = this.#sealed(this.numBlocks, this.numPieces, added);
    if (added.length) new Peel(grown); // throws for a block that is there twice, or numbers that are not finite
    return { bytes: grown, read };
  }

  #part(from, length) {
    return this.#bytes.subarray(from, from + length);
  }

  /** A file of the first blocks of this one, and others behind them: [id, scales, codes] each. */
  #sealed(blocks, pieces, added) {
    const bytes = joined([
      this.#part(0, this.overheadBytes + blocks * this.idBytes),
      ...added.map(([id]) => id),
      this.#part(this.scalesAt, this.hasScales ? 2 * pieces : 0),
      ...added.map(([, scales]) => scales),
      this.#part(this.codesAt, pieces * this.codeBytes),
      ...added.map(([, , codes]) => codes),
    ]);
    const view = new DataView(bytes.buffer);
    view.setUint32(20, blocks + added.length, true);
    view.setUint32(24, added.reduce((sum, [, , codes]) => sum + codes.length / this.codeBytes, pieces), true);
    view.setUint32(40, checksum(bytes), true);
    return bytes;
  }
}

function idAt({ single, idWidth, slices }, view, at) {
  const number = (i) => (idWidth === 2 ? view.getUint16(at + 2 * i, true) : view.getUint32(at + 4 * i, true));
  return single ? [number(0), Math.floor(number(0) / slices), 1] : [number(0), number(1), number(2)];
}

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte;
  for (let bit = 0; bit < 8; bit += 1) crc = crc & 1 ? (crc >>> 1) ^ 0xedb88320 : crc >>> 1;
  return crc;
});

/** CRC32 of all bytes but those of the checksum itself. */
function checksum(bytes) {
  let crc = 0xffffffff;
  for (let at = 0; at < bytes.length; at += 1) {
    if (at < 40 || at >= HEADER_BYTES) crc = CRC_TABLE[(crc ^ bytes[at]) & 255] ^ (crc >>> 8);
  }
  return ~crc >>> 0;
}

function joined(parts) {
  const bytes = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}

const hex = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
