// What a device of the official JavaScript SDK can be asked, wherever it runs: in Node (client.mjs), in a browser
// (web/page.jsx).
//
//   {"do": "watch", "sql": "SELECT …", …}  →  {"result": …} or {"error": "…"}

import { column, LogLevels, Schema, Table } from '@powersync/common';
import { LocalSyncConnector } from '../../example_project/connector.js';

export const logger = {
  log({ level, message, error }) {
    if (level >= LogLevels.debug) console.error(message, error ?? '');
  }
};

// The connector that an app copies, watched: what it fetched, sent and was told.
class Connector extends LocalSyncConnector {
  uploads = []; // {sent, status, answer} of each request
  rejections = [];
  fetches = 0;

  // Each time that credentials are wanted the next of the tokens is given; the last one stays.
  constructor(endpoint, tokens) {
    const fetchToken = async () => tokens[Math.min(this.fetches++, tokens.length - 1)];
    super(endpoint, fetchToken, { onRejected: ({ result }) => this.rejections.push(result) });
  }
}

// One device. `openDatabase(path, schema)` gives the SDK's database for the place where this runs.
export class Device {
  db;
  #openDatabase;
  #connector;
  #synced = []; // the priorities that were complete, each time that they changed; all: hasSynced
  #subscriptions = [];

  constructor(openDatabase) {
    this.#openDatabase = openDatabase;
    this.#watchUploads();
  }

  async answer({ do: name, ...parameters }) {
    try {
      return { result: await this[name](parameters) };
    } catch (error) {
      return { error: `${name}: ${error?.stack ?? error}` };
    }
  }

  // tables: {name: {column: "text" | "integer" | "real"}}
  async open({ path, tables }) {
    const typed = (columns) => Object.fromEntries(Object.entries(columns).map(([name, type]) => [name, column[type]]));
    const named = Object.entries(tables).map(([name, columns]) => [name, new Table(typed(columns))]);
    this.db = this.#openDatabase(path, new Schema(Object.fromEntries(named)));
    this.db.registerListener({ statusChanged: (status) => this.#noteSynced(status) });
    await this.db.init();
    return { sdk: this.db.sdkVersion, client_id: await this.db.getClientId() };
  }

  // options: the SDK's own, such as {connectionMethod, retryDelayMs, crudUploadThrottleMs, params}
  async connect({ endpoint, tokens, options }) {
    this.#connector = new Connector(endpoint, tokens);
    await this.db.connect(this.#connector, options);
  }

  disconnect = () => this.db.disconnect();

  // Whether the first sync came in time.
  async waitForFirstSync({ timeout_ms }) {
    await this.db.waitForFirstSync(AbortSignal.timeout(timeout_ms));
    return this.db.currentStatus.hasSynced;
  }

  // One local transaction: [[sql, parameters], …]
  write = ({ statements }) =>
    this.db.writeTransaction(async (transaction) => {
      for (const [sql, parameters] of statements) await transaction.execute(sql, parameters);
    });

  getAll = ({ sql, parameters }) => this.db.getAll(sql, parameters);

  // Watch a query until its rows are the expected ones; answers with the rows seen last.
  async watch({ sql, parameters, rows: expected, timeout_ms }) {
    let seen = await this.db.getAll(sql, parameters);
    if (equal(seen, expected)) return seen;
    const deadline = AbortSignal.timeout(timeout_ms);
    for await (const result of this.db.watch(sql, parameters, { signal: deadline })) {
      seen = result.rows._array;
      if (equal(seen, expected)) break;
    }
    return seen;
  }

  // options: {ttl, priority}
  async subscribe({ stream, parameters, options }) {
    this.#subscriptions.push(await this.db.syncStream(stream, parameters).subscribe(options));
  }

  // Whether the rows of the stream that was subscribed to last came in time.
  async waitForStream({ timeout_ms }) {
    const subscription = this.#subscriptions.at(-1);
    await subscription.waitForFirstSync(AbortSignal.timeout(timeout_ms));
    return this.db.currentStatus.forStream(subscription)?.subscription.hasSynced;
  }

  // Let go of every subscription to the stream with these parameters: what lives on is the time to live.
  unsubscribe({ stream, parameters }) {
    const ending = this.#subscriptions.filter((one) => one.name == stream && equal([one.parameters], [parameters]));
    for (const one of ending) one.unsubscribe();
  }

  // Forget them, whatever their time to live.
  unsubscribeAll = ({ stream, parameters }) => this.db.syncStream(stream, parameters).unsubscribeAll();

  async status() {
    const { connected, hasSynced, downloadError, uploadError } = this.db.currentStatus;
    const { fetches = 0, uploads = [], rejections = [] } = this.#connector ?? {};
    return {
      connected,
      has_synced: hasSynced,
      synced: this.#synced,
      errors: [downloadError, uploadError].filter(Boolean).map((error) => error.message ?? String(error)),
      queued: (await this.db.getUploadQueueStats()).count,
      fetches,
      uploads,
      rejections
    };
  }

  #noteSynced({ hasSynced, priorityStatusEntries = [] }) {
    const priorities = priorityStatusEntries.filter((entry) => entry.hasSynced).map((entry) => entry.priority);
    const now = { priorities: priorities.sort(), all: Boolean(hasSynced) };
    if (!equal([now], this.#synced.slice(-1))) this.#synced.push(now);
  }

  // Watches fetch() in the same way as the connector.
  #watchUploads() {
    const fetchUnwatched = globalThis.fetch;
    globalThis.fetch = async (address, options) => {
      const response = await fetchUnwatched(address, options);
      if (this.#connector && String(address).endsWith('/upload')) {
        const answer = await response.clone().text();
        this.#connector.uploads.push({ sent: JSON.parse(options.body), status: response.status, answer });
      }
      return response;
    };
  }
}

// Whether lists of objects are the same; the order of keys does not matter.
function equal(some, others) {
  const sorted = (rows) => JSON.stringify(rows.map((row) => Object.entries(row ?? {}).sort()));
  return sorted(some) == sorted(others);
}
