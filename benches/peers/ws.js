#!/usr/bin/env node
// A broadcast server on `ws`: every client gets what is posted to /publish.

import { WebSocketServer, WebSocket } from 'ws';
import { listen } from './publish.js';

// Compression is off by default, and the README of `ws` advises to leave it so. `DEFLATE=1` turns it on, with the options
// that this README shows.
const deflate = {
    zlibDeflateOptions: { chunkSize: 1024, memLevel: 7, level: 3 },
    zlibInflateOptions: { chunkSize: 10 * 1024 },
    clientNoContextTakeover: true,
    serverNoContextTakeover: true,
    serverMaxWindowBits: 10,
    concurrencyLimit: 10,
    threshold: 1024,
};
const server = listen(broadcast);
const sockets = new WebSocketServer({ server, path: '/', perMessageDeflate: process.env.DEFLATE === '1' && deflate });

function broadcast(body) {
    for (const socket of sockets.clients) {
        if (socket.readyState === WebSocket.OPEN) {
            socket.send(body, { binary: false });
        }
    }
}
