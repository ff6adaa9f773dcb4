// ws-cluster.js is a plain script and the only source. This module gives its class a name to import.
import "./ws-cluster.js";

export const { WsCluster } = globalThis;
export default WsCluster;
