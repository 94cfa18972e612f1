package kit

import (
	"cmp"
	"errors"
	"io"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	pb "ollmbridge.example/client/gen/ollmbridge/v1"
)

// Accumulate reads a stream, such as StreamChatCompletion returns, to its end, and returns the response that its chunks make
// up. If the stream fails, the response is what came before the failure.
func Accumulate(stream interface {
	Recv() (*pb.StreamChatCompletionResponse, error)
}) (*pb.CreateChatCompletionResponse, error) {
	var accumulator Accumulator
	for {
		chunk, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return accumulator.Build(), nil
		} else if err != nil {
			return accumulator.Build(), err
		}
		accumulator.Add(chunk)
	}
}

// Accumulator does the same chunk by chunk, for a program that shows text as it comes. Its zero value is ready.
type Accumulator struct {
	reply   *pb.CreateChatCompletionResponse
	choices map[int32]*choice
	texts   texts
}

// choice is one of the reply's choices. Its calls have their index until Build.
type choice struct {
	*pb.Choice
	last   map[int32]*pb.ToolCall // the last call at each index
	before *pb.ToolCall           // the call of the fragment before
}

// Add adds the next chunk.
func (a *Accumulator) Add(chunk *pb.StreamChatCompletionResponse) {
	if a.reply == nil {
		*a = Accumulator{&pb.CreateChatCompletionResponse{}, map[int32]*choice{}, texts{}}
	}
	a.texts.merge(a.reply.ProtoReflect(), chunk.ProtoReflect())
	for _, delta := range chunk.GetChoices() {
		found := a.choices[delta.GetIndex()]
		if found == nil {
			found = &choice{Choice: &pb.Choice{Message: &pb.ChatMessage{}}, last: map[int32]*pb.ToolCall{}}
			a.choices[delta.GetIndex()] = found
			a.reply.Choices = append(a.reply.Choices, found.Choice)
		}
		a.texts.merge(found.Choice.ProtoReflect(), delta.ProtoReflect())
		a.texts.merge(found.Message.ProtoReflect(), delta.GetDelta().ProtoReflect())
		for _, fragment := range delta.GetDelta().GetToolCalls() {
			found.before = found.find(fragment)
			a.texts.merge(found.before.ProtoReflect(), fragment.ProtoReflect())
		}
	}
}

// find returns the last call at the fragment's index, or the one of the fragment before; or a new one.
func (c *choice) find(fragment *pb.ToolCallDelta) *pb.ToolCall {
	call, index := c.before, int32(len(c.Message.ToolCalls))
	if fragment.Index != nil {
		index = fragment.GetIndex()
		call = c.last[index]
	}
	if call != nil {
		hasIDs := call.Id != "" && fragment.GetId() != ""
		isOther := hasIDs && call.Id != fragment.GetId() || !hasIDs && fragment.Index == nil
		if !isOther || fragment.GetFunction().GetName() == "" {
			return call
		}
	}
	c.last[index] = &pb.ToolCall{Index: &index}
	c.Message.ToolCalls = append(c.Message.ToolCalls, c.last[index])
	return c.last[index]
}

// Build returns the response as it is so far.
func (a *Accumulator) Build() *pb.CreateChatCompletionResponse {
	for text, builder := range a.texts {
		text.message.Set(text.field, protoreflect.ValueOfString(builder.String()))
	}
	reply := cmp.Or(proto.CloneOf(a.reply), &pb.CreateChatCompletionResponse{})
	reply.Object = "chat.completion"
	slices.SortFunc(reply.Choices, func(a, b *pb.Choice) int { return cmp.Compare(a.Index, b.Index) })
	for _, choice := range reply.Choices {
		message := choice.Message
		message.Role = cmp.Or(message.Role, "assistant")
		if message.GetText() == "" && len(message.ToolCalls) > 0 {
			message.Content = nil
		}
		slices.SortStableFunc(message.ToolCalls, func(a, b *pb.ToolCall) int { return cmp.Compare(*a.Index, *b.Index) })
		for _, call := range message.ToolCalls {
			call.Index, call.Type = nil, proto.String(cmp.Or(call.GetType(), "function"))
		}
	}
	return reply
}

// joined has the fields that are joined, with their names in a response; of those in first, later values replace nothing.
var (
	joined = map[protoreflect.Name]protoreflect.Name{
		"content": "text", "refusal": "refusal", "reasoning_content": "reasoning_content", "reasoning": "reasoning",
		"arguments": "arguments",
	}
	first = []protoreflect.Name{"id", "created", "model", "role", "type", "name"}
)

// texts are texts so far, as builders: each of many thousand chunks may add to them.
type texts map[text]*strings.Builder

type text struct {
	message protoreflect.Message
	field   protoreflect.FieldDescriptor
}

// merge adds the fields that are set to those of the same name. Lists of deltas are left to the caller.
func (t texts) merge(kept, added protoreflect.Message) {
	added.Range(func(from protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		name := from.Name()
		isFirst := slices.Contains(first, name)
		field := kept.Descriptor().Fields().ByName(cmp.Or(joined[name], name))
		switch {
		case field == nil || field.IsList() && field.Message() != from.Message():
		case !field.IsMap() && field.Message() != from.Message():
			t.merge(kept.Mutable(field).Message(), value.Message())
		case joined[name] != "":
			place := text{kept, field}
			t[place] = cmp.Or(t[place], &strings.Builder{})
			t[place].WriteString(value.String())
		case isFirst && kept.Has(field), (isFirst || name == "finish_reason") && value.String() == "":
		default: // as proto.Merge does: set, append to lists, set the keys of maps
			part := kept.New()
			part.Set(field, value)
			proto.Merge(kept.Interface(), part.Interface())
		}
		return true
	})
}
