// A broadcast server on Bun: every client gets what is posted to /publish. `./bun` runs it.

const port = Number(process.argv[2]);
if (!Number.isInteger(port)) {
    console.error('usage: bun PORT');
    process.exit(2);
}
// Compression is off by default.
const compress = process.env.DEFLATE === '1';

Bun.serve({
    hostname: '127.0.0.1',
    port,
    async fetch(request, server) {
        if (request.method === 'POST') {
            const url = new URL(request.url);
            if (url.pathname !== '/publish') {
                return new Response(null, { status: 404 });
            }
            const count = Number(url.searchParams.get('count') ?? 1);
            const text = await request.text();
            for (let sent = 0; sent < count; sent++) {
                server.publish('all', text, compress);
            }
            return new Response(null, { status: 204 });
        }
        return server.upgrade(request) ? undefined : new Response(null, { status: 404 });
    },
    websocket: {
        perMessageDeflate: compress,
        open(socket) {
            socket.subscribe('all');
        },
        message() {},
    },
});
