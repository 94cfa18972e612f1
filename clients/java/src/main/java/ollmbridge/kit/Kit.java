package ollmbridge.kit;

import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.Message;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RequestInfo;
import com.google.rpc.RetryInfo;
import io.grpc.ChannelCredentials;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.TlsChannelCredentials;
import java.io.File;
import java.io.IOException;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import ollmbridge.v1.UpstreamError;

/** Connects to a bridge, and reads a failed call. {@link Accumulator} joins the chunks of a stream. */
public final class Kit {
  private static final int ANSWER_BYTES_MAX = 32 << 20; // an answer may have 16 MiB; grpc's own limit is 4 MiB
  private static final long RETRY_BYTES_MAX = 8 << 20; // a request may have 4 MiB; grpc does not retry one above 1 MiB
  private static final Map<String, ?> SERVICE_CONFIG =
      Map.of(
          "methodConfig",
          List.of(
              Map.of(
                  "name", List.of(Map.of("service", "ollmbridge.v1.ChatCompletionService")),
                  "retryPolicy",
                      Map.of(
                          "maxAttempts", 4.0,
                          "initialBackoff", "0.1s",
                          "maxBackoff", "5s",
                          "backoffMultiplier", 2.0,
                          "retryableStatusCodes", List.of("UNAVAILABLE", "RESOURCE_EXHAUSTED")))));
  private static final Metadata.Key<byte[]> DETAILS =
      Metadata.Key.of("grpc-status-details-bin", Metadata.BINARY_BYTE_MARSHALLER);

  private Kit() {}

  /** PEM files: of the authorities to trust (null: the system's), and of the client's certificate and its key. */
  public record Tls(File ca, File cert, File key) {
    public Tls(File ca) {
      this(ca, null, null);
    }

    ChannelCredentials load() throws IOException {
      var builder = TlsChannelCredentials.newBuilder();
      if (ca != null) {
        builder.trustManager(ca);
      }
      if (cert != null) {
        builder.keyManager(cert, key);
      }
      return builder.build();
    }
  }

  /** Opens a channel to a bridge, not over TLS. */
  public static ManagedChannel connect(String address) {
    return open(address, InsecureChannelCredentials.create());
  }

  /** Opens a channel to a bridge over TLS. */
  public static ManagedChannel connect(String address, Tls tls) throws IOException {
    return open(address, tls.load());
  }

  private static ManagedChannel open(String address, ChannelCredentials credentials) {
    return Grpc.newChannelBuilder(address, credentials)
        .keepAliveTime(30, TimeUnit.SECONDS)
        .keepAliveWithoutCalls(true)
        .maxInboundMessageSize(ANSWER_BYTES_MAX)
        .perRpcBufferLimit(RETRY_BYTES_MAX)
        .retryBufferSize(8 * RETRY_BYTES_MAX)
        .defaultServiceConfig(SERVICE_CONFIG)
        .build();
  }

  /**
   * What a failed call says. Without the bridge's details, as from a proxy, all but code and message is empty.
   *
   * @param retryAfter the wait that the failure asks for, or null
   */
  public record Failure(
      Status.Code code,
      String message,
      String reason,
      String domain,
      Map<String, String> metadata,
      Duration retryAfter,
      List<BadRequest.FieldViolation> violations,
      String requestId,
      UpstreamError upstream,
      String upstreamWords) {}

  /** Reads the exception of a call. */
  public static Failure readFailure(Throwable error) {
    Status status = Status.fromThrowable(error);
    Metadata trailers = Status.trailersFromThrowable(error);
    byte[] packed = trailers == null ? null : trailers.get(DETAILS);
    List<Any> details = List.of();
    try {
      details = com.google.rpc.Status.parseFrom(packed == null ? new byte[0] : packed).getDetailsList();
    } catch (InvalidProtocolBufferException broken) {
      // as if there were none
    }
    ErrorInfo info = find(details, ErrorInfo.getDefaultInstance());
    RetryInfo retry = find(details, RetryInfo.getDefaultInstance());
    UpstreamError upstream = find(details, UpstreamError.getDefaultInstance());
    var delay = retry.getRetryDelay();
    return new Failure(
        status.getCode(),
        status.getDescription() == null ? "" : status.getDescription(),
        info.getReason(),
        info.getDomain(),
        info.getMetadataMap(),
        retry.hasRetryDelay() ? Duration.ofSeconds(delay.getSeconds(), delay.getNanos()) : null,
        find(details, BadRequest.getDefaultInstance()).getFieldViolationsList(),
        find(details, RequestInfo.getDefaultInstance()).getRequestId(),
        upstream,
        upstream.getMessage().isEmpty() ? upstream.getBodyExcerpt() : upstream.getMessage());
  }

  /** Returns the detail of a type, or the empty message if there is none, or if its bytes are broken. */
  @SuppressWarnings("unchecked")
  private static <T extends Message> T find(List<Any> details, T empty) {
    for (Any packed : details) {
      try {
        if (packed.is(empty.getClass())) {
          return (T) packed.unpack(empty.getClass());
        }
      } catch (InvalidProtocolBufferException broken) {
        return empty;
      }
    }
    return empty;
  }
}
