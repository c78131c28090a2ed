// A device of the official JavaScript SDK, driven from outside: a JSON request a line on stdin, an answer a line on
// stdout, the SDK's log on stderr. One request at a time; the end of stdin is the end of the device.
//
//   {"do": "watch", "sql": "SELECT …", …}  →  {"result": …} or {"error": "…"}

import { isDeepStrictEqual } from 'node:util';
import { createInterface } from 'node:readline';
import { column, LogLevels, PowerSyncDatabase, Schema, SyncStreamConnectionMethod, Table } from '@powersync/node';

const MOST_TRANSACTIONS_AN_UPLOAD = 100;

const logger = {
  log({ level, message, error }) {
    if (level >= LogLevels.debug) console.error(message, error ?? '');
  }
};

// What an app gives the SDK: credentials, and a way for local writes to reach the backend.
class Connector {
  uploads = []; // {sent, status, answer} of each request

  // Each time that credentials are wanted the next of the tokens is given; the last one stays.
  constructor(endpoint, tokens) {
    Object.assign(this, { endpoint, tokens, fetches: 0 });
  }

  async fetchCredentials() {
    this.token = this.tokens[Math.min(this.fetches++, this.tokens.length - 1)];
    return { endpoint: this.endpoint, token: this.token };
  }

  async uploadData(database) {
    const transactions = [];
    for await (const transaction of database.getCrudTransactions()) {
      if (transactions.push(transaction) == MOST_TRANSACTIONS_AN_UPLOAD) break;
    }
    if (!transactions.length) return;
    await this.post({
      client_id: await database.getClientId(),
      transactions: transactions.map(({ transactionId, crud }) => ({
        id: transactionId,
        operations: crud.map((entry) => ({ ...entry.toJSON(), tx_id: undefined }))
      }))
    });
    await transactions.at(-1).complete();
  }

  async post(body) {
    const response = await fetch(`${this.endpoint}/upload`, {
      method: 'POST',
      headers: { 'Content-Type': 'application/json', Authorization: `Bearer ${this.token}` },
      body: JSON.stringify(body)
    });
    const answer = await response.text();
    this.uploads.push({ sent: body, status: response.status, answer });
    if (!response.ok) throw new Error(`the upload was answered with ${response.status}: ${answer}`);
  }
}

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
    const { fetches, uploads } = connector ?? {};
    return {
      connected,
      has_synced: hasSynced,
      errors: [downloadError, uploadError].filter(Boolean).map(String),
      queued: (await db.getUploadQueueStats()).count,
      fetches,
      uploads
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
