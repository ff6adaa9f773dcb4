#!/usr/bin/env node
// A broadcast server on Socket.IO: every client gets what is posted to /publish as the event "message".

import { Server } from 'socket.io';
import { listen } from './publish.js';

const server = listen((body) => io.emit('message', body.toString()));
const io = new Server(server, { transports: ['websocket'], serveClient: false });

// Socket.IO's page on performance tuning: forget the first request of a connection, to save its memory.
io.engine.on('connection', (connection) => {
    connection.request = null;
});
