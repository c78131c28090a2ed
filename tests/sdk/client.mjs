// A device of the official JavaScript SDK, driven from outside: a JSON request a line on stdin, an answer a line on
// stdout, the SDK's log on stderr. One request at a time; the end of stdin is the end of the device.
//
//   {"do": "watch", "sql": "SELECT …", …}  →  {"result": …} or {"error": "…"}

import { isDeepStrictEqual } from 'node:util';
import { createInterface } from 'node:readline';
import { LocalSyncConnector } from '../../example_project/connector.js';
import { column, LogLevels, PowerSyncDatabase, Schema, SyncStreamConnectionMethod, Table } from '@powersync/node';

const logger = {
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

// Node's fetch, watched in the same way.
const fetchUnwatched = globalThis.fetch;
globalThis.fetch = async (address, options) => {
  const response = await fetchUnwatched(address, options);
  if (connector && String(address).endsWith('/upload')) {
    const answer = await response.clone().text();
    connector.uploads.push({ sent: JSON.parse(options.body), status: response.status, answer });
  }
  return response;
};

let db, connector;

const requests = {
  // tables: {name: {column: "text" | "integer" | "real"}}
  async open({ path, tables }) {
    const typed = (columns) => Object.fromEntries(Object.entries(columns).map(([name, type]) => [name, column[type]]));
    const named = Object.entries(tables).map(([name, columns]) => [name, new Table(typed(columns))]);
    db = new PowerSyncDatabase({
      schema: new Schema(Object.fromEntries(named)),
      database: { dbFilename: path, implementation: { type: 'node:sqlite' }, readWorkerCount: 1 },
      logger
    });
    await db.init();
    return { sdk: db.sdkVersion, node: process.versions.node, client_id: await db.getClientId() };
  },

  // options: the SDK's own, such as {retryDelayMs, crudUploadThrottleMs, params}
  async connect({ endpoint, tokens, options }) {
    connector = new Connector(endpoint, tokens);
    await db.connect(connector, { connectionMethod: SyncStreamConnectionMethod.HTTP, ...options });
  },

  disconnect: () => db.disconnect(),

  // Whether the first sync came in time.
  async waitForFirstSync({ timeout_ms }) {
    await db.waitForFirstSync(AbortSignal.timeout(timeout_ms));
    return db.currentStatus.hasSynced;
  },

  // One local transaction: [[sql, parameters], …]
  write: ({ statements }) =>
    db.writeTransaction(async (transaction) => {
      for (const [sql, parameters] of statements) await transaction.execute(sql, parameters);
    }),

  getAll: ({ sql, parameters }) => db.getAll(sql, parameters),

  // Watch a query until its rows are the expected ones; answers with the rows seen last.
  async watch({ sql, parameters, rows: expected, timeout_ms }) {
    let seen = await db.getAll(sql, parameters);
    if (isDeepStrictEqual(seen, expected)) return seen;
    const deadline = AbortSignal.timeout(timeout_ms);
    for await (const result of db.watch(sql, parameters, { signal: deadline })) {
      seen = result.rows._array;
      if (isDeepStrictEqual(seen, expected)) break;
    }
    return seen;
  },

  // Whether the stream's rows came in time.
  async subscribe({ stream, parameters, timeout_ms }) {
    const subscription = await db.syncStream(stream, parameters).subscribe();
    await subscription.waitForFirstSync(AbortSignal.timeout(timeout_ms));
    return db.currentStatus.forStream(subscription)?.subscription.hasSynced;
  },

  // Forget every subscription to the stream with these parameters.
  unsubscribe: ({ stream, parameters }) => db.syncStream(stream, parameters).unsubscribeAll(),

  async status() {
    const { connected, hasSynced, downloadError, uploadError } = db.currentStatus;
    const { fetches, uploads, rejections } = connector ?? {};
    return {
      connected,
      has_synced: hasSynced,
      errors: [downloadError, uploadError].filter(Boolean).map(String),
      queued: (await db.getUploadQueueStats()).count,
      fetches,
      uploads,
      rejections
    };
  }
};

for await (const line of createInterface({ input: process.stdin })) {
  const { do: name, ...parameters } = JSON.parse(line);
  const answer = await requests[name](parameters).then(
    (result) => ({ result }),
    (error) => ({ error: `${name}: ${error?.stack ?? error}` })
  );
  process.stdout.write(JSON.stringify(answer) + '\n');
}
await db?.close();
process.exit();
