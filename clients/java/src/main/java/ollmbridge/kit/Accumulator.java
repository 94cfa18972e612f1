package ollmbridge.kit;

import static java.util.Comparator.comparingInt;

import com.google.protobuf.Descriptors.FieldDescriptor;
import com.google.protobuf.Message;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.Iterator;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import ollmbridge.v1.Choice;
import ollmbridge.v1.ChoiceDelta;
import ollmbridge.v1.CreateChatCompletionResponse;
import ollmbridge.v1.StreamChatCompletionResponse;
import ollmbridge.v1.ToolCall;
import ollmbridge.v1.ToolCallDelta;

/** Joins the chunks of a stream to the response that a unary call would return. ../../CASES.md has the rules. */
public final class Accumulator {
  /** The fields whose values are joined, and their names in a response. */
  private static final Map<String, String> JOINED =
      Map.of(
          "content", "text",
          "refusal", "refusal",
          "reasoning_content", "reasoning_content",
          "reasoning", "reasoning",
          "arguments", "arguments");
  /** The fields of which a later value replaces nothing. */
  private static final Set<String> FIRST = Set.of("id", "created", "model", "role", "type", "name");
  /** The lists of deltas, each of which is merged on its own. */
  private static final Set<String> DELTAS = Set.of("choices", "tool_calls");

  private final CreateChatCompletionResponse.Builder reply = CreateChatCompletionResponse.newBuilder();
  private final Map<Integer, ChoiceSoFar> choices = new TreeMap<>();
  private final Map<Text, StringBuilder> texts = new HashMap<>();

  /** A field whose text is in a builder until the end: each of many thousand chunks may add to it. */
  private record Text(Message.Builder message, FieldDescriptor field) {}

  /** Returns the response that the chunks of a stream make up. */
  public static CreateChatCompletionResponse accumulate(Iterator<StreamChatCompletionResponse> chunks) {
    var accumulator = new Accumulator();
    chunks.forEachRemaining(accumulator::add);
    return accumulator.build();
  }

  /** Adds the next chunk. */
  public void add(StreamChatCompletionResponse chunk) {
    merge(reply, chunk);
    for (ChoiceDelta added : chunk.getChoicesList()) {
      ChoiceSoFar choice = choices.computeIfAbsent(added.getIndex(), index -> new ChoiceSoFar());
      merge(choice.choice, added);
      merge(choice.choice.getMessageBuilder(), added.getDelta());
      for (ToolCallDelta fragment : added.getDelta().getToolCallsList()) {
        choice.before = choice.findCall(fragment);
        merge(choice.before, fragment);
      }
    }
  }

  /** Merges the fields that are set into those of the same name. */
  private void merge(Message.Builder kept, Message added) {
    added.getAllFields().forEach((source, value) -> {
      String name = source.getName();
      var field = kept.getDescriptorForType().findFieldByName(JOINED.getOrDefault(name, name));
      if (field == null || DELTAS.contains(name)) {
        return;
      }
      boolean isEmpty = value.equals("");
      boolean isIgnored = FIRST.contains(name) ? isEmpty || kept.hasField(field) : isEmpty && name.equals("finish_reason");
      if (name.equals("function")) {
        merge(kept.getFieldBuilder(field), (Message) value);
      } else if (JOINED.containsKey(name)) {
        texts.computeIfAbsent(new Text(kept, field), key -> new StringBuilder()).append(value);
      } else if (!isIgnored) {
        // Sets the field, appends to a list, or puts the keys of a map.
        var part = kept.getDefaultInstanceForType().newBuilderForType();
        kept.mergeFrom(part.setField(field, value).build());
      }
    });
  }

  /** Returns the response as it is so far. */
  public CreateChatCompletionResponse build() {
    texts.forEach((text, value) -> text.message.setField(text.field, value.toString()));
    var built = reply.clone().setObject("chat.completion");
    choices.values().forEach(choice -> built.addChoices(choice.build()));
    return built.build();
  }

  /** A choice, and its calls, which have their index until the end. */
  private static final class ChoiceSoFar {
    private final Choice.Builder choice = Choice.newBuilder();
    private final List<ToolCall.Builder> calls = new ArrayList<>();
    private final Map<Integer, ToolCall.Builder> byIndex = new HashMap<>(); // the last call at each index
    private ToolCall.Builder before; // the call of the fragment before

    /** Returns the last call at the fragment's index, or the one of the fragment before; or a new one. */
    private ToolCall.Builder findCall(ToolCallDelta fragment) {
      var found = fragment.hasIndex() ? byIndex.get(fragment.getIndex()) : before;
      if (found != null) {
        String known = found.getId();
        String id = fragment.getId();
        boolean isOther = known.isEmpty() || id.isEmpty() ? !fragment.hasIndex() : !known.equals(id);
        if (!isOther || fragment.getFunction().getName().isEmpty()) {
          return found;
        }
      }
      int index = fragment.hasIndex() ? fragment.getIndex() : calls.size();
      calls.add(ToolCall.newBuilder().setIndex(index));
      byIndex.put(index, calls.get(calls.size() - 1));
      return byIndex.get(index);
    }

    Choice build() {
      var built = choice.clone();
      var message = built.getMessageBuilder();
      message.setRole(message.getRole().isEmpty() ? "assistant" : message.getRole());
      if (!calls.isEmpty() && message.getText().isEmpty()) {
        message.clearText();
      }
      calls.stream().sorted(comparingInt(ToolCall.Builder::getIndex)).forEach(call -> {
        String type = call.getType().isEmpty() ? "function" : call.getType();
        message.addToolCalls(call.clone().setType(type).clearIndex());
      });
      return built.build();
    }
  }
}
