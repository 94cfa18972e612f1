package ollmbridge.client;

import com.google.gson.Gson;
import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.Message;
import com.google.rpc.RetryInfo;
import io.grpc.Channel;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import java.io.File;
import java.util.Map;
import java.util.Optional;
import java.util.concurrent.TimeUnit;
import ollmbridge.v1.ChatCompletionServiceGrpc;
import ollmbridge.v1.ChatCompletionServiceGrpc.ChatCompletionServiceBlockingStub;
import ollmbridge.v1.ChatMessage;
import ollmbridge.v1.CreateChatCompletionRequest;
import ollmbridge.v1.CreateChatCompletionResponse;

/** Helpers of the cases: channels, stubs, requests, and the details of a failed call. */
final class Bridge {
  static final String MODEL = "near_qwen3_30b";

  private static final long CASE_TIMEOUT_MS = 60_000;

  private static final String SERVICE_CONFIG =
      """
      {
        "methodConfig": [{
          "name": [{"service": "ollmbridge.v1.ChatCompletionService"}],
          "retryPolicy": {
            "maxAttempts": 4,
            "initialBackoff": "0.01s",
            "maxBackoff": "0.05s",
            "backoffMultiplier": 2,
            "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"]
          }
        }]
      }
      """;

  private Bridge() {}

  /** Opens a channel without TLS, with retries by service config. */
  @SuppressWarnings("unchecked")
  static ManagedChannel openChannel(String address) {
    return Grpc.newChannelBuilder(address, InsecureChannelCredentials.create())
        .defaultServiceConfig(new Gson().fromJson(SERVICE_CONFIG, Map.class))
        .build();
  }

  /** A stub with a deadline in a minute: a deadline is a point in time, so each call needs a stub of its own. */
  static ChatCompletionServiceBlockingStub stub(Channel channel) {
    return stub(channel, CASE_TIMEOUT_MS);
  }

  /** A stub with a deadline after a timeout. */
  static ChatCompletionServiceBlockingStub stub(Channel channel, long timeoutMs) {
    return ChatCompletionServiceGrpc.newBlockingStub(channel).withDeadlineAfter(timeoutMs, TimeUnit.MILLISECONDS);
  }

  /** A request with one message of the user. */
  static CreateChatCompletionRequest.Builder newRequest(String text, String model) {
    return CreateChatCompletionRequest.newBuilder()
        .setModel(model)
        .addMessages(ChatMessage.newBuilder().setRole("user").setText(text));
  }

  /** The text of a reply's first choice. */
  static String textOf(CreateChatCompletionResponse reply) {
    return reply.getChoices(0).getMessage().getText();
  }

  /** Makes a call that must fail, and returns its failure. */
  static StatusRuntimeException expectFailure(ChatCompletionServiceBlockingStub stub, CreateChatCompletionRequest request) {
    try {
      stub.createChatCompletion(request);
    } catch (StatusRuntimeException failure) {
      return failure;
    }
    throw new IllegalStateException(request.getModel() + ": the call did not fail");
  }

  /** Returns the failure's detail of a type. */
  static <T extends Message> Optional<T> findDetail(StatusRuntimeException failure, Class<T> type)
      throws InvalidProtocolBufferException {
    for (Any packed : StatusProto.fromThrowable(failure).getDetailsList()) {
      if (packed.is(type)) {
        return Optional.of(packed.unpack(type));
      }
    }
    return Optional.empty();
  }

  /** The wait that a failure asks for, or null. */
  static Double retryAfterS(StatusRuntimeException failure) throws InvalidProtocolBufferException {
    return findDetail(failure, RetryInfo.class)
        .map(RetryInfo::getRetryDelay)
        .map(delay -> delay.getSeconds() + delay.getNanos() / 1e9)
        .orElse(null);
  }

  /** The file that an environment variable names. */
  static File fileOf(String variable) {
    return new File(System.getenv(variable));
  }
}
