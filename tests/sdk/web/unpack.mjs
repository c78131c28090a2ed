// Unpacks the Chromium of @sparticuz/chromium, with the few libraries that it needs and a font, into TMPDIR.

import { fileURLToPath } from 'node:url';
import chromium, { inflate } from '@sparticuz/chromium';

await chromium.executablePath();
await inflate(fileURLToPath(import.meta.resolve('@sparticuz/chromium').replace('build/index.js', 'bin/al2023.tar.br')));
