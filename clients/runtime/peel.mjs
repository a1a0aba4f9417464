/**
 * Reads what lies on a device, a .peel file: scores, best items, smaller and larger files.
 * docs/artefact.md has every byte, docs/runtime.md how to use this in browsers and Node.
 */

export const HEADER_BYTES = 44;
export const PRECISIONS = ["fp32", "fp16", "int8", "int4"];

/** Why a file, a list or a budget cannot be used, in one line. */
export class PeelError extends Error {
  name = "PeelError";
}

const refused = (why) => new PeelError(`not a stored embedding: ${why}`);
const unfit = (why) => new PeelError(`${why}; ask for the list again`);

/** An elastic embedding, as one file holds it. Keeps the bytes it was given alone. */
export class Peel {
  #bytes;
  #view;

  /** Of an ArrayBuffer or Uint8Array; throws a PeelError unless it is an artefact, whole and consistent. */
  constructor(data) {
    this.#bytes = data instanceof Uint8Array ? data : new Uint8Array(data);
    this.#view = viewOf(this.#bytes);
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
    const cut = version === 3;
    if (!cut && version !== 2) throw refused(`format ${version}, where this release reads 2 and 3`);
    if (checksum(this.#bytes) !== view.getUint32(40, true)) {
      throw refused("its checksum does not match: it was cut off or changed");
    }
    const place = view.getUint8(5);
    if (place >= PRECISIONS.length) throw refused(`precision number ${place}`);
    this.precision = PRECISIONS[place];
    const [numbers, width] = this.#part(6, 2);
    const wide = [8, 12, 20, 24, 28].map((at) => view.getUint32(at, true));
    const [items, itemGroups, numBlocks, numPieces, userGroup] = wide;
    const [columns, slices] = [16, 18].map((at) => view.getUint16(at, true));
    if (!items || !itemGroups || !columns || !slices || columns % slices) {
      throw refused(`${items} items, ${itemGroups} item groups, ${columns} columns in ${slices} slices`);
    }
    const needed = Math.max(items, itemGroups * slices) < 65_536 ? 2 : 4;
    this.single = numbers === 1;
    if ((numbers !== 1 && numbers !== 3) || width !== needed || (this.single && itemGroups !== items)) {
      throw refused(`${numbers} numbers of ${width} bytes a block, ${itemGroups} item groups of ${items} items`);
    }
    Object.assign(this, { items, itemGroups, columns, slices, numBlocks, numPieces, userGroup });
    this.catalogue = hex(this.#part(32, 8));
    this.idWidth = width;
    this.idBytes = numbers * width;
    this.sliceColumns = columns / slices;
    this.hasScales = place >= 2;
    this.codeBytes = Math.ceil(this.sliceColumns * [4, 2, 1, 0.5][place]);
    this.pieceBytes = this.codeBytes + 2 * this.hasScales;
    this.leastBytes = HEADER_BYTES + 2 * this.sliceColumns;
    const rest = HEADER_BYTES + numBlocks * this.idBytes + numPieces * this.pieceBytes;
    const user = cut ? (length - rest) >> 1 : columns;
    if (length !== rest + 2 * user || user < 1 || user > columns - cut) {
      throw refused(`${length} bytes, where its header speaks of ${rest + 2 * columns}${cut ? " less" : ""}`);
    }
    this.userColumns = user;
    this.idsAt = HEADER_BYTES + 2 * user;
    this.scalesAt = this.idsAt + numBlocks * this.idBytes;
    this.codesAt = this.scalesAt + 2 * numPieces * this.hasScales;
  }

  #checkNumbers() {
    const check = (from, to, width, exponent) => {
      for (let at = from + width - 2; at < to; at += width) {
        if ((~this.#view.getUint16(at, true) & exponent) === 0) throw refused("some of its numbers are not finite");
      }
    };
    check(HEADER_BYTES, this.idsAt, 2, 0x7c00);
    check(this.scalesAt, this.codesAt, 2, 0x7c00);
    if (this.precision === "fp16") check(this.codesAt, this.#bytes.length, 2, 0x7c00);
    if (this.precision === "fp32") check(this.codesAt, this.#bytes.length, 4, 0x7f80);
  }

  #checkBlocks() {
    const { numBlocks, numPieces, items, itemGroups, columns, slices } = this;
    let [pieces, empty, agree, twice] = [0, false, true, false];
    this.widest = 0;
    for (const [block, first, count] of this.ids()) {
      this.widest = Math.max(this.widest, block % slices);
      if (block >= itemGroups * slices || first + count > items) {
        throw refused(`a block beyond ${itemGroups} item groups, ${slices} slices, ${items} items`);
      }
      empty ||= count < 1;
      pieces += count;
    }
    const user = this.userColumns;
    if (user < columns && user !== (this.widest + 1) * this.sliceColumns) {
      throw refused(`${user} columns of the user embedding, not those that its blocks have`);
    }
    let [before, itsFirst, itsCount] = [-1, 0, 0];
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
    return idAt(this, this.#view, this.idsAt + place * this.idBytes);
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

  /** The columns of the user embedding that are stored. */
  get user() {
    return Float32Array.from({ length: this.userColumns }, (_, i) => this.#half(HEADER_BYTES + 2 * i));
  }

  /** Numbers of the blocks, in the order of their weights. */
  get blocks() {
    return Uint32Array.from({ length: this.numBlocks }, (_, place) => this.#id(place)[0]);
  }

  /** Number of the last block, behind which a device reads on; null where there is none. */
  get lastBlock() {
    return this.blocks.at(-1) ?? null;
  }

  /** Of every block, in the order of their weights: number, first catalogue row, rows. */
  *ids() {
    for (let place = 0; place < this.numBlocks; place += 1) yield this.#id(place);
  }

  /** Scale of a row piece; 1 where there are none. */
  scale(piece) {
    return this.hasScales ? this.#half(this.scalesAt + 2 * piece) : 1;
  }

  /** A number of a row piece, not scaled. */
  code(piece, column) {
    const at = this.codesAt + piece * this.codeBytes;
    switch (this.precision) {
      case "fp32": return this.#view.getFloat32(at + 4 * column, true);
      case "fp16": return this.#half(at + 2 * column);
      case "int8": return this.#view.getInt8(at + column);
      default: return ((this.#view.getUint8(at + (column >> 1)) >> (4 * (column & 1))) & 15) - 8;
    }
  }

  /** Catalogue rows with a block here, ascending, and their scores, added up in double as every reader does. */
  scores() {
    const { numBlocks, slices, sliceColumns, user } = this;
    const pieceOf = new Uint32Array(numBlocks + 1); // first row piece of each block
    let place = 0;
    for (const [, , count] of this.ids()) pieceOf[(place += 1)] = pieceOf[place - 1] + count;
    const rows = new Uint32Array(this.numPieces);
    const totals = new Float64Array(this.numPieces);
    let [start, end, last] = [0, 0, -1]; // rows among those found; item group
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
    const places = rows.map((_, i) => i).filter((i) => !without.has(rows[i]));
    const best = [...places.sort((a, b) => scores[b] - scores[a] || a - b).subarray(0, Math.max(n, 0))];
    return { rows: best.map((i) => rows[i]), scores: best.map((i) => scores[i]) };
  }

  /** The file under a smaller budget: the last blocks are dropped until the rest fits. */
  shrink(budgetBytes) {
    if (budgetBytes >= this.leastBytes) return this.#filled(budgetBytes, [], 0, this.listed()).bytes;
    const least = `header and user embedding (${this.leastBytes} B)`;
    throw new PeelError(`budget ${budgetBytes} B does not hold ${least}; raise the budget`);
  }

  /** Blocks from behind one of a number on (null: from the first), each as a server sends it: id, scales, codes. */
  *listed(after = null) {
    let found = after === null;
    let piece = 0;
    let at = this.idsAt;
    for (const [block, , count] of this.ids()) {
      if (found) {
        yield joined([
          this.#part(at, this.idBytes),
          this.#part(this.scalesAt + 2 * piece, 2 * count * this.hasScales),
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
   * The file under a larger budget, and bytes read. following: what `listed` has of the list behind the last block, or a
   * fuller file; read up to the id of the first that does not fit, but for rows that are seen. user: the whole embedding.
   */
  grow(budgetBytes, following, seen, user) {
    if (following instanceof Peel) {
      for (const field of ["catalogue", "userGroup", "precision", "items", "columns", "slices"]) {
        const [mine, its] = [this[field], following[field]];
        if (mine !== its) throw unfit(`the fuller file is of ${field} ${its}, this one of ${mine}`);
      }
      user = following.#userPart();
      following = following.listed(this.lastBlock);
    }
    const grown = this.#filled(budgetBytes, [...this.listed()], this.widest, following, seen, user);
    new Peel(grown.bytes); // throws for a block twice, or numbers that are not finite
    return grown;
  }

  /** Blocks as sent, whose last slice is `widest`, and behind them those of a list that fit. */
  #filled(budgetBytes, blocks, widest, following, seen = [], user = this.#userPart()) {
    const known = new Set(seen);
    const { idBytes, pieceBytes, codeBytes, slices, itemGroups, items } = this;
    const sliceBytes = 2 * this.sliceColumns;
    let room = blocks.reduce((left, { length }) => left - length, budgetBytes - this.leastBytes - widest * sliceBytes);
    let read = 0;
    for (const sent of following) {
      if (sent.length < idBytes) throw unfit(`${sent.length} bytes of a block, whose id has ${idBytes}`);
      const [block, first, count] = idAt(this, viewOf(sent), 0);
      if (block >= itemGroups * slices || count < 1 || first + count > items) {
        throw unfit(`block ${block} with rows ${first} to ${first + count} is beyond the catalogue`);
      }
      const bytes = idBytes + count * pieceBytes;
      const wider = Math.max(widest, block % slices);
      const takes = bytes + (wider - widest) * sliceBytes;
      let row = first;
      while (known.has(row)) row += 1;
      const needed = row < first + count;
      if (needed && takes > room) {
        read += idBytes;
        break;
      }
      if (sent.length !== bytes) throw unfit(`block ${block} takes ${bytes} bytes, ${sent.length} came`);
      read += bytes;
      if (!needed) continue;
      room -= takes;
      widest = wider;
      blocks.push(sent);
    }
    const userBytes = (widest + 1) * sliceBytes;
    if (user.length < userBytes) throw new PeelError("the user embedding is cut; give all of it");
    const codesAt = ({ length }) => length - ((length - idBytes) / pieceBytes) * codeBytes;
    const bytes = joined([
      this.#part(0, HEADER_BYTES),
      user.subarray(0, userBytes),
      ...blocks.map((sent) => sent.subarray(0, idBytes)),
      ...blocks.map((sent) => sent.subarray(idBytes, codesAt(sent))),
      ...blocks.map((sent) => sent.subarray(codesAt(sent))),
    ]);
    const view = viewOf(bytes);
    view.setUint8(4, widest + 1 < slices ? 3 : 2);
    view.setUint32(20, blocks.length, true);
    view.setUint32(24, (bytes.length - HEADER_BYTES - userBytes - blocks.length * idBytes) / pieceBytes, true);
    view.setUint32(40, checksum(bytes), true);
    return { bytes, read };
  }

  #userPart() {
    return this.#part(HEADER_BYTES, 2 * this.userColumns);
  }

  #part(from, length) {
    return this.#bytes.subarray(from, from + length);
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

const viewOf = ({ buffer, byteOffset, length }) => new DataView(buffer, byteOffset, length);
const hex = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
