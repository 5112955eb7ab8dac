// LatentService of the repository's protos: calls as promises, errors in plain words.

import { fileURLToPath } from "node:url";

import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";
import protobuf from "protobufjs";

const PROTOS = fileURLToPath(new URL("../../protos", import.meta.url));

// 64-bit numbers as strings, since a double holds whole numbers up to 2^53 alone.
const definition = protoLoader.loadSync("latentserve/v1/latent_service.proto", {
  includeDirs: [PROTOS],
  keepCase: true,
  longs: String,
  enums: String,
  defaults: true,
});
const { LatentService } = grpc.loadPackageDefinition(definition).latentserve.v1;

// What google.rpc's error details look like on the wire.
const details = new protobuf.Root();
details.resolvePath = (_, target) => `${PROTOS}/${target}`;
details.loadSync("latentserve/compat/v1/compat.proto");
const RpcStatus = details.lookupType("latentserve.compat.v1.RpcStatus");
const RpcBadRequest = details.lookupType("latentserve.compat.v1.RpcBadRequest");

/** A call that failed: the RPC, its status, and which fields were wrong or else what it says. */
export class CallError extends Error {
  constructor(rpc, error) {
    const fields = violations(error.metadata);
    const said = fields.map(({ field, description }) => `\n  ${field}: ${description}`).join("");
    super(`${rpc}: ${grpc.status[error.code]}${said || `: ${error.details}`}`, { cause: error });
    this.violations = fields;
  }
}

/** A connection to one server. */
export class Connection {
  /**
   * @param {string} target HOST:PORT.
   * @param {number} timeout Deadline of each call, in seconds.
   */
  constructor(target, timeout) {
    this.timeout = timeout;
    // The server's own limit of a message, and not the 4 MiB of gRPC, is to count.
    const options = { "grpc.max_receive_message_length": -1 };
    this.stub = new LatentService(target, grpc.credentials.createInsecure(), options);
  }

  /**
   * Calls an RPC by its name in the proto.
   *
   * @returns {Promise<object>} The reply; bytes are Buffers, 64-bit numbers strings.
   * @throws {CallError}
   */
  call(rpc, request) {
    const deadline = Date.now() + 1000 * this.timeout;
    return new Promise((resolve, reject) => {
      this.stub[rpc](request, { deadline }, (error, reply) =>
        error ? reject(new CallError(rpc, error)) : resolve(reply),
      );
    });
  }

  close() {
    this.stub.close();
  }
}

/** Which fields of the request were wrong, as [{field, description}]. */
function violations(metadata) {
  const [raw] = metadata?.get("grpc-status-details-bin") ?? [];
  if (raw === undefined) return [];
  const packed = RpcStatus.decode(raw).details.filter(({ type_url }) =>
    type_url.endsWith("/google.rpc.BadRequest"),
  );
  return packed.flatMap(({ value }) => RpcBadRequest.decode(value).fieldViolations);
}
