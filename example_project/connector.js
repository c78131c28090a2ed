// Connects the PowerSync JavaScript SDK to django_localsync. Copy it: it needs nothing but fetch().
//
//   await db.connect(new LocalSyncConnector('https://example.org/localsync', fetchToken, { onRejected }));
//
// fetchToken: async () => the text of a fresh token, such as `data.token` of POST <endpoint>/token.
// onRejected: ({ transaction, result }) => …, told of each local transaction that the backend refused. It is out of the
// queue then, and sync brings back what the backend has; the table `localsync_rejection` says the same.

const MOST_TRANSACTIONS = 100; // of one request
const MOST_OPERATIONS = 500; // likewise; a larger local transaction goes alone

export class LocalSyncConnector {
  #token;

  constructor(endpoint, fetchToken, { onRejected = () => {}, language } = {}) {
    Object.assign(this, { endpoint, fetchToken, onRejected, language });
  }

  async fetchCredentials() {
    this.#token = await this.fetchToken();
    return { endpoint: this.endpoint, token: this.#token };
  }

  // Called by the SDK when there are local writes; what it throws is tried again after a pause.
  async uploadData(database) {
    for (;;) {
      const transactions = await oldest(database);
      if (!transactions.length) return;
      const results = await this.#upload(await database.getClientId(), transactions);
      await this.#settle(transactions, results);
    }
  }

  async #upload(client_id, transactions) {
    const body = { version: 1, client_id, transactions: transactions.map(asJson) };
    const token = this.#token ?? (await this.fetchCredentials()).token;
    const headers = { 'Content-Type': 'application/json', Authorization: `Bearer ${token}` };
    if (this.language) headers['Accept-Language'] = this.language; // browsers send their own
    const response = await fetch(`${this.endpoint}/upload`, { method: 'POST', headers, body: JSON.stringify(body) });
    if (response.status == 401) this.#token = undefined; // the next attempt asks for a new one
    if (!response.ok) throw new Error(`the upload was answered with ${response.status}: ${await response.text()}`);
    return (await response.json()).data.transactions;
  }

  // Takes out of the queue what is applied or refused for good; what is deferred stays, with all that follows it.
  async #settle(transactions, results) {
    let last;
    let deferred = false;
    for (const transaction of transactions) {
      const result = results.find(({ id }) => id == transaction.transactionId);
      if (!result) throw new Error(`the answer is silent about transaction ${transaction.transactionId}`);
      deferred = result.status == 'deferred';
      if (deferred) break;
      if (result.status == 'rejected') this.onRejected({ transaction, result });
      last = transaction;
    }
    await last?.complete();
    if (deferred) throw new Error('the backend deferred the oldest write; it is sent again later');
  }
}

// The oldest transactions of the queue, as many as go into one request.
async function oldest(database) {
  const transactions = [];
  let operations = 0;
  for await (const transaction of database.getCrudTransactions()) {
    operations += transaction.crud.length;
    if (transactions.length && operations > MOST_OPERATIONS) break;
    if (transactions.push(transaction) == MOST_TRANSACTIONS) break;
  }
  return transactions;
}

function asJson({ transactionId, crud }) {
  return { id: transactionId, operations: crud.map((entry) => ({ ...entry.toJSON(), tx_id: undefined })) };
}
