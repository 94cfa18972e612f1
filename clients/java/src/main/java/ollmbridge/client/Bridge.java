package ollmbridge.client;

import com.google.gson.Gson;
import io.grpc.Channel;
import io.grpc.StatusRuntimeException;
import java.io.File;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Base64;
import java.util.List;
import java.util.concurrent.TimeUnit;
import java.util.stream.Stream;
import ollmbridge.kit.Kit;
import ollmbridge.kit.Kit.Failure;
import ollmbridge.v1.ChatCompletionServiceGrpc;
import ollmbridge.v1.ChatCompletionServiceGrpc.ChatCompletionServiceBlockingStub;
import ollmbridge.v1.ChatMessage;
import ollmbridge.v1.CreateChatCompletionRequest;
import ollmbridge.v1.CreateChatCompletionResponse;

/** Helpers of the cases: stubs, requests, failures and vectors. */
final class Bridge {
  static final String MODEL = "near_qwen3_30b";

  private static final long CASE_TIMEOUT_MS = 60_000;

  private Bridge() {}

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

  /** Makes a call that must fail, and returns what its status says. */
  static Failure expectFailure(ChatCompletionServiceBlockingStub stub, CreateChatCompletionRequest request) {
    try {
      stub.createChatCompletion(request);
    } catch (StatusRuntimeException error) {
      return Kit.readFailure(error);
    }
    throw new IllegalStateException(request.getModel() + ": the call did not fail");
  }

  /** The wait that a failure asks for in seconds, or null. */
  static Double retryAfterS(Failure failure) {
    return failure.retryAfter() == null ? null : failure.retryAfter().toNanos() / 1e9;
  }

  /** The file that an environment variable names. */
  static File fileOf(String variable) {
    return new File(System.getenv(variable));
  }

  /** A line of one of the files of ../vectors; its bytes are base64. */
  record Vector(String name, List<String> chunks, int code, String message, String details) {
    List<byte[]> decodeChunks() {
      return chunks.stream().map(Base64.getDecoder()::decode).toList();
    }
  }

  /** Reads one of the files of ../vectors. */
  static List<Vector> readVectors(String kind) throws IOException {
    String folder = System.getenv().getOrDefault("VECTORS", "../vectors");
    try (Stream<String> lines = Files.lines(Path.of(folder, kind + ".jsonl"))) {
      return lines.map(line -> new Gson().fromJson(line, Vector.class)).toList();
    }
  }
}
