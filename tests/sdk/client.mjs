// A device in Node, driven from outside: a JSON request a line on stdin, an answer a line on stdout (requests.mjs), the
// SDK's log on stderr. One request at a time; the end of stdin is the end of the device.

import { createInterface } from 'node:readline';
import { PowerSyncDatabase } from '@powersync/node';
import { Device, logger } from './requests.mjs';

const device = new Device(
  (path, schema) =>
    new PowerSyncDatabase({
      schema,
      database: { dbFilename: path, implementation: { type: 'node:sqlite' }, readWorkerCount: 1 },
      logger
    })
);
device.runtime = () => `Node ${process.versions.node}`;

for await (const line of createInterface({ input: process.stdin })) {
  process.stdout.write(JSON.stringify(await device.answer(JSON.parse(line))) + '\n');
}
await device.db?.close();
process.exit();
