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
    const client_id = await database.getClientId();
    for (;;) {
      const transactions = await oldest(database);
      if (!transactions.length) return;
      await this.#settle(transactions, await this.#upload(client_id, transactions.map(asJson)));
    }
  }

  async #upload(client_id, transactions) {
    const token = this.#token ?? (await this.fetchCredentials()).token;
    const headers = { 'Content-Type': 'application/json', Authorization: `Bearer ${token}` };
    if (this.language) headers['Accept-Language'] = this.language; // browsers send their own
    const body = JSON.stringify({ version: 1, client_id, transactions });
    const response = await fetch(`${this.endpoint}/upload`, { method: 'POST', headers, body });
    if (response.status == 413) return this.#uploadInParts(client_id, transactions, await response.text());
    if (response.status == 401) this.#token = undefined; // the next attempt asks for a new one
    if (!response.ok) throw new Error(`the upload was answered with ${response.status}: ${await response.text()}`);
    return (await response.json()).data.transactions;
  }

  // A body that is too long: halves of it, one after the other. Halves of one transaction are applied one by one.
  async #uploadInParts(client_id, transactions, answer) {
    const [whole] = transactions;
    const ofOne = () => inHalves(whole.operations).map((operations) => [{ ...whole, operations }]);
    const halves = transactions.length > 1 ? inHalves(transactions) : ofOne();
    if (!halves[0][0].operations.length) throw new Error(`a single write is too long: ${answer}`);
    const results = await this.#upload(client_id, halves[0]);
    if (results.some(({ status }) => status == 'deferred')) {
      return [...results, ...transactions.map(({ id }) => ({ id, status: 'deferred' }))];
    }
    return [...results, ...(await this.#upload(client_id, halves[1]))];
  }

  // Takes out of the queue what is applied or refused for good; what is deferred stays, with all that follows it.
  async #settle(transactions, results) {
    let last;
    let deferred = false;
    for (const transaction of transactions) {
      const result = together(results.filter(({ id }) => id == transaction.transactionId));
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

// The result of a transaction of which parts were sent: the worst of theirs.
function together(parts) {
  const status = ['deferred', 'rejected', 'applied'].find((each) => parts.some(({ status }) => status == each));
  if (parts.length < 2) return parts[0];
  return { ...parts[0], status, operations: parts.flatMap(({ operations }) => operations ?? []) };
}

function inHalves(list) {
  const middle = list.length >> 1;
  return [list.slice(0, middle), list.slice(middle)];
}

function asJson({ transactionId, crud }) {
  return { id: transactionId, operations: crud.map((entry) => ({ ...entry.toJSON(), tx_id: undefined })) };
}
