#!/usr/bin/env node
// A broadcast server on `ws`: every client gets what is posted to /publish.

import { WebSocketServer, WebSocket } from 'ws';
import { listen } from './publish.js';

// Compression is off by default, and the README of `ws` advises to leave it so. `DEFLATE=1` turns it on.
const server = listen(broadcast);
const sockets = new WebSocketServer({ server, path: '/', perMessageDeflate: process.env.DEFLATE === '1' });

function broadcast(body) {
    for (const socket of sockets.clients) {
        if (socket.readyState === WebSocket.OPEN) {
            socket.send(body, { binary: false });
        }
    }
}
