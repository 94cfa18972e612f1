package kit

import (
	"cmp"
	"errors"
	"io"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	pb "ollmbridge.example/client/gen/ollmbridge/v1"
)

// Accumulate reads a stream, such as StreamChatCompletion returns, to its end, and returns the response that its chunks make up. If
// the stream fails, the response is what came before the failure.
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
}

// Add adds the next chunk.
func (a *Accumulator) Add(chunk *pb.StreamChatCompletionResponse) {
	if a.reply == nil {
		a.reply, a.choices = &pb.CreateChatCompletionResponse{}, map[int32]*choice{}
	}
	reply := a.reply
	reply.Id, reply.Model = cmp.Or(reply.Id, chunk.Id), cmp.Or(reply.Model, chunk.Model)
	reply.Created = cmp.Or(reply.Created, chunk.Created)
	// Merge sets each field that is set, at each level, appends to lists, and sets the keys of maps.
	proto.Merge(reply, &pb.CreateChatCompletionResponse{
		EpisodeId: chunk.EpisodeId, SystemFingerprint: chunk.SystemFingerprint, ServiceTier: chunk.ServiceTier,
		RawUsageJson: chunk.RawUsageJson, RawResponseJson: chunk.RawResponseJson, Usage: chunk.Usage, ExtraJson: chunk.ExtraJson,
	})
	for _, delta := range chunk.GetChoices() {
		if a.choices[delta.GetIndex()] == nil {
			a.choices[delta.GetIndex()] = &choice{choice: &pb.Choice{}, places: map[int32]int{}, place: -1}
		}
		a.choices[delta.GetIndex()].add(delta)
	}
}

// Build returns the response as it is so far.
func (a *Accumulator) Build() *pb.CreateChatCompletionResponse {
	reply := &pb.CreateChatCompletionResponse{Object: "chat.completion"}
	if a.reply != nil {
		proto.Merge(reply, a.reply)
	}
	for _, index := range slices.Sorted(maps.Keys(a.choices)) {
		reply.Choices = append(reply.Choices, a.choices[index].build(index))
	}
	return reply
}

// choice has one choice so far. Texts are builders: each of many thousand chunks may add to them.
type choice struct {
	choice                                        *pb.Choice // without its texts and calls
	content, refusal, reasoningContent, reasoning text
	calls                                         []*call
	places                                        map[int32]int // of the last call at each index, plus 1
	place                                         int           // of the fragment before
}

type call struct {
	index     int32
	call      *pb.ToolCall
	arguments strings.Builder
}

func (c *choice) add(added *pb.ChoiceDelta) {
	if added.GetFinishReason() != "" {
		c.choice.FinishReason = added.FinishReason
	}
	delta := cmp.Or(added.GetDelta(), &pb.MessageDelta{})
	message := &pb.ChatMessage{Annotations: delta.Annotations, ExtraJson: delta.ExtraJson}
	proto.Merge(c.choice, &pb.Choice{Logprobs: added.Logprobs, ExtraJson: added.ExtraJson, Message: message})
	c.choice.Message.Role = cmp.Or(c.choice.Message.Role, delta.GetRole())
	c.content.add(delta.Content)
	c.refusal.add(delta.Refusal)
	c.reasoningContent.add(delta.ReasoningContent)
	c.reasoning.add(delta.Reasoning)
	for _, fragment := range delta.GetToolCalls() {
		c.place = c.find(fragment)
		call := c.calls[c.place].call
		call.Id = cmp.Or(call.Id, fragment.GetId())
		call.Type = proto.String(cmp.Or(call.GetType(), fragment.GetType()))
		proto.Merge(call, &pb.ToolCall{ExtraJson: fragment.ExtraJson})
		if function := fragment.Function; function != nil {
			proto.Merge(call, &pb.ToolCall{Function: &pb.FunctionCall{ExtraJson: function.ExtraJson}})
			call.Function.Name = cmp.Or(call.Function.Name, function.GetName())
			c.calls[c.place].arguments.WriteString(function.GetArguments())
		}
	}
}

// find returns the place of a fragment's call: of the last one at its index, or of the one before; or of a new one.
func (c *choice) find(fragment *pb.ToolCallDelta) int {
	place, index := c.place, int32(len(c.calls))
	if fragment.Index != nil {
		index = fragment.GetIndex()
		place = c.places[index] - 1
	}
	if place >= 0 {
		known, id := c.calls[place].call.Id, fragment.GetId()
		hasIDs := known != "" && id != ""
		isOther := hasIDs && known != id || !hasIDs && fragment.Index == nil
		if !isOther || fragment.GetFunction().GetName() == "" {
			return place
		}
	}
	c.calls = append(c.calls, &call{index: index, call: &pb.ToolCall{}})
	c.places[index] = len(c.calls)
	return len(c.calls) - 1
}

func (c *choice) build(index int32) *pb.Choice {
	built := proto.CloneOf(c.choice)
	built.Index = index
	message := built.Message
	message.Role = cmp.Or(message.Role, "assistant")
	message.Refusal, message.ReasoningContent, message.Reasoning = c.refusal.value(), c.reasoningContent.value(), c.reasoning.value()
	if c.content.came && (c.content.Len() > 0 || len(c.calls) == 0) {
		message.Content = &pb.ChatMessage_Text{Text: c.content.String()}
	}
	calls := slices.Clone(c.calls)
	slices.SortStableFunc(calls, func(a, b *call) int { return cmp.Compare(a.index, b.index) })
	for _, each := range calls {
		call := proto.CloneOf(each.call)
		call.Type = proto.String(cmp.Or(call.GetType(), "function"))
		if call.Function != nil {
			call.Function.Arguments = each.arguments.String()
		}
		message.ToolCalls = append(message.ToolCalls, call)
	}
	return built
}

// text is joined text, if any came.
type text struct {
	strings.Builder
	came bool
}

func (t *text) add(part *string) {
	if part != nil {
		t.came = true
		t.WriteString(*part)
	}
}

func (t *text) value() *string {
	if !t.came {
		return nil
	}
	return proto.String(t.String())
}
