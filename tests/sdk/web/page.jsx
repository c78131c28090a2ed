// A device in a browser: the page of an app with React, which is driven from outside by `ask` (../requests.mjs).

import { useState } from 'react';
import { createRoot } from 'react-dom/client';
import { PowerSyncDatabase } from '@powersync/web';
import { PowerSyncContext, usePowerSync, useQuery, useStatus, useSyncStream } from '@powersync/react';
import { Device, logger } from '../requests.mjs';

// The SDK's own build of its worker, as `powersync-web copy-assets` gives it to an app.
const worker = '/powersync/worker.js';

const device = new Device(
  (path, schema) =>
    new PowerSyncDatabase({ schema, database: { dbFilename: path, worker }, sync: { worker }, logger })
);
device.runtime = () => navigator.userAgent;

const main = document.querySelector('main');
const root = createRoot(main);

// Show the to-dos of a list, for which the page then subscribes; none: show nothing, and let go of the subscription.
device.show = ({ list }) => {
  const page = list ? <Todos key={list} list={list} /> : null;
  root.render(<PowerSyncContext.Provider value={device.db}>{page}</PowerSyncContext.Provider>);
};

device.texts = () => [...main.children].map((element) => element.textContent);

device.click = () => main.querySelector('button').click();

function Todos({ list }) {
  const database = usePowerSync();
  const { connected } = useStatus();
  const stream = useSyncStream({ name: 'one_list', parameters: { list }, ttl: 600 });
  const { data, isLoading } = useQuery('SELECT id, title FROM chosen_todos ORDER BY title');
  const [added, setAdded] = useState(0);

  const add = async () => {
    const values = [crypto.randomUUID(), list, ' Added '];
    await database.execute('INSERT INTO todos (id, list_id, title) VALUES (?, ?, ?)', values);
    setAdded(added + 1);
  };

  return (
    <>
      <p>{connected ? 'online' : 'offline'}</p>
      <p>{stream?.subscription.hasSynced ? 'complete' : 'incomplete'}</p>
      <p>{isLoading ? 'loading' : data.map(({ title }) => title).join(', ')}</p>
      <button onClick={add}>{added} added</button>
    </>
  );
}

globalThis.ask = async (request) => JSON.stringify(await device.answer(JSON.parse(request)));
