// The HTTP side that the servers written in JavaScript share: `POST /publish?count=N` broadcasts its body N times.

import { createServer } from 'node:http';

/**
 * Listens on 127.0.0.1 at the port that the command line gives, and calls `broadcast` with each body to send. What
 * another listener of the server answers (Socket.IO's own path) is left to it.
 */
export function listen(broadcast) {
    const port = Number(process.argv[2]);
    if (!Number.isInteger(port)) {
        console.error(`usage: ${process.argv[1]} PORT`);
        process.exit(2);
    }
    const server = createServer((request, response) => {
        const url = new URL(request.url, 'http://localhost');
        if (request.method !== 'POST' || url.pathname !== '/publish') {
            response.writeHead(404).end();
            return;
        }
        const count = Number(url.searchParams.get('count') ?? 1);
        const chunks = [];
        request.on('data', (chunk) => chunks.push(chunk));
        request.on('end', () => {
            const body = Buffer.concat(chunks);
            for (let sent = 0; sent < count; sent++) {
                broadcast(body);
            }
            response.writeHead(204).end();
        });
    });
    // The control connection idles before and between measurements, for longer than the defaults of 60 s and 5 s.
    server.headersTimeout = 0;
    server.requestTimeout = 0;
    server.keepAliveTimeout = 0;
    server.listen({ port, host: '127.0.0.1', backlog: 4096 });
    return server;
}
