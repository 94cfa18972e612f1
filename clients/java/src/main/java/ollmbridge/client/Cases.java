package ollmbridge.client;

import static ollmbridge.client.Bridge.MODEL;
import static ollmbridge.client.Bridge.expectFailure;
import static ollmbridge.client.Bridge.fileOf;
import static ollmbridge.client.Bridge.newRequest;
import static ollmbridge.client.Bridge.retryAfterS;
import static ollmbridge.client.Bridge.stub;
import static ollmbridge.client.Bridge.textOf;

import com.google.gson.JsonParser;
import io.grpc.Context;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.health.v1.HealthCheckRequest;
import io.grpc.health.v1.HealthGrpc;
import io.grpc.stub.MetadataUtils;
import java.io.IOException;
import java.util.ArrayList;
import java.util.Base64;
import java.util.Iterator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicReference;
import java.util.stream.Collectors;
import ollmbridge.client.Bridge.Vector;
import ollmbridge.kit.Accumulator;
import ollmbridge.kit.Kit;
import ollmbridge.kit.Kit.Failure;
import ollmbridge.kit.Kit.Tls;
import ollmbridge.v1.CacheOptions;
import ollmbridge.v1.ChatMessage;
import ollmbridge.v1.Choice;
import ollmbridge.v1.ChoiceDelta;
import ollmbridge.v1.CreateChatCompletionRequest;
import ollmbridge.v1.CreateChatCompletionResponse;
import ollmbridge.v1.FunctionTool;
import ollmbridge.v1.OllmOptions;
import ollmbridge.v1.ResponseFormat;
import ollmbridge.v1.StreamChatCompletionResponse;
import ollmbridge.v1.StreamOptions;
import ollmbridge.v1.Tool;
import ollmbridge.v1.ToolCall;

/** The cases of ../../CASES.md, one method each; a record is a line. */
final class Cases {
  private static final Metadata.Key<String> REQUEST_ID =
      Metadata.Key.of("x-request-id", Metadata.ASCII_STRING_MARSHALLER);
  private static final Metadata.Key<byte[]> DETAILS =
      Metadata.Key.of("grpc-status-details-bin", Metadata.BINARY_BYTE_MARSHALLER);
  private static final long REFUSED_TIMEOUT_MS = 5_000;
  private static final long RETRY_TIMEOUT_MS = 30_000;
  private static final String WEATHER_SCHEMA =
      "{\"type\": \"object\", \"properties\": {\"location\": {\"type\": \"string\"}}, \"required\": [\"location\"]}";
  private static final String ANSWER_SCHEMA =
      "{\"type\": \"object\", \"required\": [\"zulu\", \"alpha\"], \"properties\": "
          + "{\"zulu\": {\"type\": \"integer\", \"maximum\": 9007199254740993}, \"alpha\": {\"type\": \"string\"}}}";

  private final ManagedChannel channel;

  Cases(ManagedChannel channel) {
    this.channel = channel;
  }

  record Usage(long promptTokens, long completionTokens, long totalTokens) {}

  record Unary(
      String text,
      String finishReason,
      Usage usage,
      String systemFingerprint,
      String serviceTier,
      String requestId) {}

  /** A whole completion, and a request id that comes back. A unary call returns headers as trailers. */
  Unary unary() {
    var request = newRequest("Grüße, 世界 🌍", MODEL).setTemperature(0.2).setMaxTokens(64).build();
    var trailers = new AtomicReference<Metadata>();
    var reply =
        stub(channel)
            .withInterceptors(
                MetadataUtils.newAttachHeadersInterceptor(requestId("clients-unary")),
                MetadataUtils.newCaptureMetadataInterceptor(new AtomicReference<>(), trailers))
            .createChatCompletion(request);
    Choice choice = reply.getChoices(0);
    var usage = reply.getUsage();
    return new Unary(
        textOf(reply),
        choice.hasFinishReason() ? choice.getFinishReason() : null,
        new Usage(usage.getPromptTokens(), usage.getCompletionTokens(), usage.getTotalTokens()),
        reply.hasSystemFingerprint() ? reply.getSystemFingerprint() : null,
        reply.hasServiceTier() ? reply.getServiceTier() : null,
        trailers.get().get(REQUEST_ID));
  }

  record Stream(List<String> contents, String text, String finishReason, Long totalTokens) {}

  /** A streamed completion. The iterator ends without an exception only if the completion is whole. */
  Stream stream() {
    var request =
        newRequest("Hello", MODEL).setStreamOptions(StreamOptions.newBuilder().setIncludeUsage(true)).build();
    List<String> contents = new ArrayList<>();
    var accumulator = new Accumulator();
    stub(channel)
        .streamChatCompletion(request)
        .forEachRemaining(
            chunk -> {
              for (ChoiceDelta choice : chunk.getChoicesList()) {
                contents.add(choice.getDelta().hasContent() ? choice.getDelta().getContent() : null);
              }
              accumulator.add(chunk);
            });
    CreateChatCompletionResponse reply = accumulator.build();
    String finishReason = reply.getChoices(0).getFinishReason();
    return new Stream(contents, textOf(reply), finishReason, reply.getUsage().getTotalTokens());
  }

  record Call(String id, String name, String arguments) {}

  record Tools(int fragments, List<Call> toolCalls, String finishReason, String text) {}

  /** A tool call: joins its fragments, and sends it back with the tool's result. */
  Tools tools() {
    CreateChatCompletionRequest.Builder request = newRequest("What is the weather in Paris?", MODEL);
    request.addTools(
        Tool.newBuilder()
            .setFunction(
                FunctionTool.newBuilder()
                    .setName("get_weather")
                    .setDescription("The weather at a place.")
                    .setParametersJson(WEATHER_SCHEMA)));
    List<StreamChatCompletionResponse> chunks = new ArrayList<>();
    stub(channel).streamChatCompletion(request.build()).forEachRemaining(chunks::add);
    Choice choice = Accumulator.accumulate(chunks.iterator()).getChoices(0);
    List<ToolCall> calls = choice.getMessage().getToolCallsList();

    request.addMessages(choice.getMessage());
    for (ToolCall call : calls) {
      var arguments = JsonParser.parseString(call.getFunction().getArguments()).getAsJsonObject();
      String result = "21 degrees in " + arguments.get("location").getAsString();
      request.addMessages(ChatMessage.newBuilder().setRole("tool").setToolCallId(call.getId()).setText(result));
    }
    CreateChatCompletionResponse reply = stub(channel).createChatCompletion(request.build());
    List<Call> shown =
        calls.stream()
            .map(call -> new Call(call.getId(), call.getFunction().getName(), call.getFunction().getArguments()))
            .toList();
    int fragments =
        chunks.stream()
            .flatMap(chunk -> chunk.getChoicesList().stream())
            .mapToInt(each -> each.getDelta().getToolCallsCount())
            .sum();
    return new Tools(fragments, shown, choice.getFinishReason(), textOf(reply));
  }

  record Options(String request, String model, String episodeId, boolean rawUsage, boolean rawResponse) {}

  /** Every option of the gateway. */
  Options ollmOptions() {
    var ollm =
        OllmOptions.newBuilder()
            .putTags("team", "search")
            .setCacheOptions(
                CacheOptions.newBuilder()
                    .setEnabled("read_only")
                    .setMaxAgeS(60)
                    .putExtraJson("scope", "\"team\""))
            .setDryrun(true)
            .setVariantName("v2")
            .setEpisodeId("01890a5d-ac96-774b-bcce-b302099a8057")
            .setDenyUnknownFields(false)
            .setIncludeRawUsage(true)
            .setIncludeRawResponse(true)
            .putExtraJson("note", "{\"n\": 9007199254740993}");
    var request = newRequest("Hello", "ollm::function_name::scenario::mirror").setOllm(ollm).build();
    var reply = stub(channel).createChatCompletion(request);
    return new Options(
        textOf(reply),
        reply.getModel(),
        reply.hasEpisodeId() ? reply.getEpisodeId() : null,
        reply.hasRawUsageJson(),
        reply.hasRawResponseJson());
  }

  record ExtraJson(String request, Map<String, String> reply, Map<String, String> message) {}

  /** JSON text that crosses unchanged, both ways. */
  ExtraJson extraJson() {
    CreateChatCompletionRequest.Builder request = newRequest("Hello", "scenario::mirror");
    request.getMessagesBuilder(0).putExtraJson("mark", "[18446744073709551615]");
    request
        .getResponseFormatBuilder()
        .setJsonSchema(
            ResponseFormat.JsonSchema.newBuilder().setName("answer").setStrict(true).setSchemaJson(ANSWER_SCHEMA));
    request.putExtraJson("exact", "{\"z\": 9007199254740993, \"price\": 1.10, \"exponent\": 1e2, \"a\": null}");
    var mirrored = stub(channel).createChatCompletion(request.build());
    var reply = stub(channel).createChatCompletion(newRequest("Hello", "scenario::unknown_fields").build());
    return new ExtraJson(
        textOf(mirrored), reply.getExtraJsonMap(), reply.getChoices(0).getMessage().getExtraJsonMap());
  }

  record Info(String reason, String domain, Map<String, String> metadata) {}

  record Violation(String field, String description) {}

  record Upstream(
      int httpStatus,
      String message,
      String type,
      String code,
      String param,
      Map<String, String> extraJson,
      boolean truncated) {}

  record Details(
      String code,
      String message,
      Info errorInfo,
      Double retryAfterS,
      List<Violation> fieldViolations,
      String requestId,
      Upstream upstreamError) {}

  /** A failure with all its details. */
  Details error() {
    String model =
        "scenario::error?status=400&code=context_length_exceeded&param=messages[0].content"
            + "&message=the+prompt+is+too+long&retry_after=2.5&raw=1";
    var attached = MetadataUtils.newAttachHeadersInterceptor(requestId("clients-error"));
    var failure = expectFailure(stub(channel).withInterceptors(attached), newRequest("Hello", model).build());
    var upstream = failure.upstream();
    return new Details(
        failure.code().name(),
        failure.message(),
        new Info(failure.reason(), failure.domain(), failure.metadata()),
        retryAfterS(failure),
        violations(failure),
        failure.requestId(),
        new Upstream(
            upstream.getHttpStatus(),
            upstream.hasMessage() ? upstream.getMessage() : null,
            upstream.hasType() ? upstream.getType() : null,
            upstream.hasCode() ? upstream.getCode() : null,
            upstream.hasParam() ? upstream.getParam() : null,
            upstream.getExtraJsonMap(),
            upstream.getTruncated()));
  }

  private static List<Violation> violations(Failure failure) {
    return failure.violations().stream()
        .map(violation -> new Violation(violation.getField(), violation.getDescription()))
        .toList();
  }

  record LargeError(
      String code, String reason, boolean truncated, boolean messageWhole, boolean upstreamMessageWhole) {}

  /** A failure whose message is larger than trailers may be. */
  LargeError largeError() {
    var failure = expectFailure(stub(channel), newRequest("Hello", "scenario::error?status=500&size=8192").build());
    return new LargeError(
        failure.code().name(),
        failure.reason(),
        failure.upstream().getTruncated(),
        failure.message().matches("错+"),
        failure.upstreamWords().matches("错+"));
  }

  record Deadline(String text, String code, boolean within) {}

  /** A stream that stalls, and a deadline. */
  Deadline deadline() {
    long startNs = System.nanoTime();
    var request = newRequest("Hello", "scenario::stall?after=2").build();
    var text = new StringBuilder();
    Status.Code code = readAll(stub(channel, 1_000).streamChatCompletion(request), text);
    long tookMs = TimeUnit.NANOSECONDS.toMillis(System.nanoTime() - startNs);
    return new Deadline(text.toString(), code.name(), 900 <= tookMs && tookMs < 5_000);
  }

  record Cancel(String text, String code) {}

  /** Cancels a stream after its third chunk. */
  Cancel cancel() throws Exception {
    var request = newRequest("Hello", "scenario::stall?after=3").build();
    var text = new StringBuilder();
    try (Context.CancellableContext context = Context.current().withCancellation()) {
      var chunks = context.call(() -> stub(channel).streamChatCompletion(request));
      for (int count = 0; count < 3; count++) {
        text.append(contentOf(chunks.next()));
      }
      context.cancel(null);
      Status.Code code = readAll(chunks, text);
      return new Cancel(text.toString(), code.name());
    }
  }

  /** Reads a stream to its end, appends the contents, and returns the code. */
  private static Status.Code readAll(Iterator<StreamChatCompletionResponse> chunks, StringBuilder text) {
    try {
      chunks.forEachRemaining(chunk -> text.append(contentOf(chunk)));
      return Status.Code.OK;
    } catch (StatusRuntimeException failure) {
      return failure.getStatus().getCode();
    }
  }

  private static String contentOf(StreamChatCompletionResponse chunk) {
    return chunk.getChoicesList().stream()
        .map(choice -> choice.getDelta().getContent())
        .collect(Collectors.joining());
  }

  record Retry(String text, int large, String givenUp, Double retryAfterS) {}

  /** Two refusals that the service config retries after the gateway's wait, and one that it does not retry. */
  Retry retry() {
    var flaky = newRequest("Hello", "scenario::flaky?times=2&status=429&retry_after_ms=400").build();
    var reply = stub(channel, RETRY_TIMEOUT_MS).createChatCompletion(flaky);
    var large = newRequest("x".repeat(3_000_000), "scenario::flaky?times=1&status=503").build();
    var largeReply = stub(channel, RETRY_TIMEOUT_MS).createChatCompletion(large);
    var limited = newRequest("Hello", "scenario::rate_limited?retry_after=61").build();
    var failure = expectFailure(stub(channel, RETRY_TIMEOUT_MS), limited);
    return new Retry(textOf(reply), textOf(largeReply).length(), failure.code().name(), retryAfterS(failure));
  }

  record Trusted(String text, boolean refusedUntrusted) {}

  /** TLS, with the server's authority and without it. */
  static Trusted tls(String address) throws IOException {
    var trusting = new Tls(fileOf("CA_FILE"));
    return new Trusted(askOverTls(address, trusting), isRefused(address, new Tls(null)));
  }

  record Mtls(String text, boolean refusedWithoutCertificate) {}

  /** TLS with a client certificate, and without one. */
  static Mtls mtls(String address) throws IOException {
    var withCertificate = new Tls(fileOf("CA_FILE"), fileOf("CERT_FILE"), fileOf("KEY_FILE"));
    var withoutCertificate = new Tls(fileOf("CA_FILE"));
    return new Mtls(askOverTls(address, withCertificate), isRefused(address, withoutCertificate));
  }

  private static String askOverTls(String address, Tls files) throws IOException {
    ManagedChannel channel = Kit.connect(address, files);
    try {
      return textOf(stub(channel).createChatCompletion(newRequest("Hello", MODEL).build()));
    } finally {
      channel.shutdownNow();
    }
  }

  private static boolean isRefused(String address, Tls files) throws IOException {
    ManagedChannel channel = Kit.connect(address, files);
    try {
      stub(channel, REFUSED_TIMEOUT_MS).createChatCompletion(newRequest("Hello", MODEL).build());
      return false;
    } catch (StatusRuntimeException failure) {
      System.err.println(address + ": " + failure.getStatus().getCode());
      return true;
    } finally {
      channel.shutdownNow();
    }
  }

  record Health(String overall, String service, String unknown) {}

  /** Health of the server, of the service, and of a service that does not exist. */
  Health health() {
    return new Health(check(""), check("ollmbridge.v1.ChatCompletionService"), check("no.such.Service"));
  }

  private String check(String service) {
    try {
      return HealthGrpc.newBlockingStub(channel)
          .withDeadlineAfter(60, TimeUnit.SECONDS)
          .check(HealthCheckRequest.newBuilder().setService(service).build())
          .getStatus()
          .name();
    } catch (StatusRuntimeException failure) {
      return failure.getStatus().getCode().name();
    }
  }

  record LargeAnswer(int characters, int streamed) {}

  /** An answer above the 4 MiB that grpc receives by default. */
  LargeAnswer largeAnswer() {
    var reply = stub(channel).createChatCompletion(newRequest("Hello", "scenario::big?size=10000000").build());
    var request = newRequest("Hello", "scenario::huge_event?size=10000000").build();
    var streamed = Accumulator.accumulate(stub(channel).streamChatCompletion(request));
    return new LargeAnswer(textOf(reply).length(), textOf(streamed).length());
  }

  record Responses(Map<String, String> responses) {}

  /** The responses that the kit makes of the vectors' chunks. */
  static Responses accumulate() throws IOException {
    Map<String, String> responses = new LinkedHashMap<>();
    for (Vector vector : Bridge.readVectors("accumulate")) {
      var accumulator = new Accumulator();
      for (byte[] chunk : vector.decodeChunks()) {
        accumulator.add(StreamChatCompletionResponse.parseFrom(chunk));
      }
      responses.put(vector.name(), Base64.getEncoder().encodeToString(accumulator.build().toByteArray()));
    }
    return new Responses(responses);
  }

  record Described(
      String code,
      String message,
      String reason,
      String domain,
      Double retryAfterS,
      List<Violation> violations,
      String requestId,
      int httpStatus,
      String upstreamWords) {}

  record Failures(Map<String, Described> failures) {}

  /** What the kit reads in the vectors' statuses. */
  static Failures readFailures() throws IOException {
    Map<String, Described> failures = new LinkedHashMap<>();
    for (Vector vector : Bridge.readVectors("failure")) {
      var trailers = new Metadata();
      if (!vector.details().isEmpty()) {
        trailers.put(DETAILS, Base64.getDecoder().decode(vector.details()));
      }
      var status = Status.fromCodeValue(vector.code()).withDescription(vector.message());
      Failure failure = Kit.readFailure(status.asRuntimeException(trailers));
      failures.put(
          vector.name(),
          new Described(
              failure.code().name(),
              failure.message(),
              failure.reason(),
              failure.domain(),
              retryAfterS(failure),
              violations(failure),
              failure.requestId(),
              failure.upstream().getHttpStatus(),
              failure.upstreamWords()));
    }
    return new Failures(failures);
  }

  private static Metadata requestId(String value) {
    var metadata = new Metadata();
    metadata.put(REQUEST_ID, value);
    return metadata;
  }
}
