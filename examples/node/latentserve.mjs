// Client of LatentService: calls as promises, errors with the fields that are wrong.

import { fileURLToPath } from "node:url";

import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";
import protobuf from "protobufjs";

const PROTOS = fileURLToPath(new URL("../../protos", import.meta.url));

// 64-bit integers become strings: a double is exact up to 2^53 only.
const definition = protoLoader.loadSync("latentserve/v1/latent_service.proto", {
  includeDirs: [PROTOS],
  keepCase: true,
  longs: String,
  enums: String,
  defaults: true,
});
const { LatentService } = grpc.loadPackageDefinition(definition).latentserve.v1;

// The error details of google.rpc, read through wire-compatible definitions.
const details = new protobuf.Root();
details.resolvePath = (_, target) => `${PROTOS}/${target}`;
details.loadSync("latentserve/compat/v1/compat.proto");
const RpcStatus = details.lookupType("latentserve.compat.v1.RpcStatus");
const RpcBadRequest = details.lookupType("latentserve.compat.v1.RpcBadRequest");

// A call that finds no server is repeated: up to five attempts in all (the most that gRPC permits),
// over about three seconds. A repeated call has the same result, since it carries its seed.
// tokenRatio: at most one retry for ten calls, so that retries do not multiply an overload.
const SERVICE_CONFIG = {
  loadBalancingConfig: [{ round_robin: {} }],
  methodConfig: [
    {
      name: [{ service: "latentserve.v1.LatentService" }],
      retryPolicy: {
        maxAttempts: 5,
        initialBackoff: "0.2s",
        maxBackoff: "2s",
        backoffMultiplier: 2,
        retryableStatusCodes: ["UNAVAILABLE"],
      },
    },
  ],
  retryThrottling: { maxTokens: 10, tokenRatio: 0.1 },
};

const CHANNEL_OPTIONS = {
  "grpc.service_config": JSON.stringify(SERVICE_CONFIG),
  // The server limits the size of messages; gRPC's default would be 4 MiB.
  "grpc.max_receive_message_length": -1,
  // A server that hangs is noticed after at most 14 seconds. It permits one ping every 10 seconds.
  "grpc.keepalive_time_ms": 10_000,
  "grpc.keepalive_timeout_ms": 4_000,
  // A restarted server is noticed within a second; with gRPC's defaults it may take two minutes.
  "grpc.initial_reconnect_backoff_ms": 100,
  "grpc.max_reconnect_backoff_ms": 1_000,
};

/** A failed call: its RPC, its status, and the invalid fields or else the message. */
export class CallError extends Error {
  constructor(rpc, error) {
    const fields = violations(error.metadata);
    const list = fields.map(({ field, description }) => `\n  ${field}: ${description}`).join("");
    super(`${rpc}: ${grpc.status[error.code]}${list || `: ${error.details}`}`, { cause: error });
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
    this.stub = new LatentService(target, grpc.credentials.createInsecure(), CHANNEL_OPTIONS);
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

/** The invalid fields of the request, as [{field, description}]. */
function violations(metadata) {
  const [raw] = metadata?.get("grpc-status-details-bin") ?? [];
  if (raw === undefined) return [];
  const packed = RpcStatus.decode(raw).details.filter(({ type_url }) =>
    type_url.endsWith("/google.rpc.BadRequest"),
  );
  return packed.flatMap(({ value }) => RpcBadRequest.decode(value).fieldViolations);
}
