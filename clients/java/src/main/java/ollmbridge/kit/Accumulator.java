package ollmbridge.kit;

import com.google.protobuf.Descriptors.FieldDescriptor;
import com.google.protobuf.Message;
import com.google.protobuf.MessageOrBuilder;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.HashMap;
import java.util.Iterator;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import ollmbridge.v1.ChatMessage;
import ollmbridge.v1.Choice;
import ollmbridge.v1.ChoiceDelta;
import ollmbridge.v1.CreateChatCompletionResponse;
import ollmbridge.v1.MessageDelta;
import ollmbridge.v1.StreamChatCompletionResponse;
import ollmbridge.v1.ToolCall;
import ollmbridge.v1.ToolCallDelta;

/** Joins the chunks of a stream to the response that a unary call would return. ../../CASES.md has the rules. */
public final class Accumulator {
  private static final List<String> LAST =
      List.of("episode_id", "system_fingerprint", "service_tier", "raw_usage_json", "raw_response_json");
  private static final List<String> TEXTS = List.of("content", "refusal", "reasoning_content", "reasoning");

  private final CreateChatCompletionResponse.Builder reply = CreateChatCompletionResponse.newBuilder();
  private final Map<Integer, ChoiceSoFar> choices = new TreeMap<>();

  /** Returns the response that the chunks of a stream make up. */
  public static CreateChatCompletionResponse accumulate(Iterator<StreamChatCompletionResponse> chunks) {
    var accumulator = new Accumulator();
    chunks.forEachRemaining(accumulator::add);
    return accumulator.build();
  }

  /** Adds the next chunk. */
  public void add(StreamChatCompletionResponse chunk) {
    keepFirst(reply, chunk, "id", "created", "model");
    for (String name : LAST) {
      if (chunk.hasField(find(chunk, name))) {
        reply.setField(find(reply, name), chunk.getField(find(chunk, name)));
      }
    }
    if (chunk.hasUsage()) {
      reply.mergeUsage(chunk.getUsage());
    }
    reply.putAllExtraJson(chunk.getExtraJsonMap());
    for (ChoiceDelta choice : chunk.getChoicesList()) {
      choices.computeIfAbsent(choice.getIndex(), index -> new ChoiceSoFar()).add(choice);
    }
  }

  /** Returns the response as it is so far. */
  public CreateChatCompletionResponse build() {
    var built = reply.clone().setObject("chat.completion");
    choices.forEach((index, choice) -> built.addChoices(choice.build().setIndex(index)));
    return built.build();
  }

  /** A call, and its arguments so far. */
  private record Call(int index, ToolCall.Builder call, StringBuilder arguments) {}

  /** A choice. Its texts are builders of their own: each of many thousand chunks may add to them. */
  private static final class ChoiceSoFar {
    private final Choice.Builder choice = Choice.newBuilder();
    private final ChatMessage.Builder message = ChatMessage.newBuilder();
    private final Map<String, StringBuilder> texts = new HashMap<>();
    private final List<Call> calls = new ArrayList<>();
    private final Map<Integer, Call> byIndex = new HashMap<>(); // the last call at each index
    private Call before; // the call of the fragment before

    void add(ChoiceDelta added) {
      if (!added.getFinishReason().isEmpty()) {
        choice.setFinishReason(added.getFinishReason());
      }
      if (added.hasLogprobs()) {
        choice.mergeLogprobs(added.getLogprobs());
      }
      choice.putAllExtraJson(added.getExtraJsonMap());
      MessageDelta delta = added.getDelta();
      keepFirst(message, delta, "role");
      for (String name : TEXTS) {
        if (delta.hasField(find(delta, name))) {
          texts.computeIfAbsent(name, key -> new StringBuilder()).append(delta.getField(find(delta, name)));
        }
      }
      message.addAllAnnotations(delta.getAnnotationsList()).putAllExtraJson(delta.getExtraJsonMap());
      for (ToolCallDelta fragment : delta.getToolCallsList()) {
        before = findCall(fragment);
        keepFirst(before.call, fragment, "id", "type");
        before.call.putAllExtraJson(fragment.getExtraJsonMap());
        if (fragment.hasFunction()) {
          var function = before.call.getFunctionBuilder();
          keepFirst(function, fragment.getFunction(), "name");
          function.putAllExtraJson(fragment.getFunction().getExtraJsonMap());
          before.arguments.append(fragment.getFunction().getArguments());
        }
      }
    }

    /** Returns the last call at the fragment's index, or the one of the fragment before; or a new one. */
    private Call findCall(ToolCallDelta fragment) {
      Call found = fragment.hasIndex() ? byIndex.get(fragment.getIndex()) : before;
      if (found != null) {
        String known = found.call.getId();
        String id = fragment.getId();
        boolean isOther = known.isEmpty() || id.isEmpty() ? !fragment.hasIndex() : !known.equals(id);
        if (!isOther || fragment.getFunction().getName().isEmpty()) {
          return found;
        }
      }
      int index = fragment.hasIndex() ? fragment.getIndex() : calls.size();
      calls.add(new Call(index, ToolCall.newBuilder(), new StringBuilder()));
      byIndex.put(index, calls.get(calls.size() - 1));
      return byIndex.get(index);
    }

    Choice.Builder build() {
      ChatMessage.Builder built = message.clone();
      texts.forEach((name, text) -> {
        String own = name.equals("content") ? "text" : name;
        built.setField(find(built, own), text.toString());
      });
      calls.stream().sorted(Comparator.comparingInt(Call::index)).forEach(each -> {
        var call = each.call.clone();
        call.setType(call.getType().isEmpty() ? "function" : call.getType());
        if (call.hasFunction()) {
          call.getFunctionBuilder().setArguments(each.arguments.toString());
        }
        built.addToolCalls(call);
      });
      if (!calls.isEmpty() && built.getText().isEmpty()) {
        built.clearText();
      }
      built.setRole(built.getRole().isEmpty() ? "assistant" : built.getRole());
      return choice.clone().setMessage(built);
    }
  }

  private static FieldDescriptor find(MessageOrBuilder message, String name) {
    return message.getDescriptorForType().findFieldByName(name);
  }

  /** Sets what is unset or empty; an empty value replaces nothing. */
  private static void keepFirst(Message.Builder kept, MessageOrBuilder source, String... names) {
    for (String name : names) {
      FieldDescriptor own = find(kept, name);
      Object value = source.getField(find(source, name));
      if (kept.getField(own).equals(own.getDefaultValue()) && !value.equals(own.getDefaultValue())) {
        kept.setField(own, value);
      }
    }
  }
}
