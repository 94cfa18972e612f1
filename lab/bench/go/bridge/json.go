package main

import (
	"encoding/json"

	pb "ollmbridge.example/bench/gen/ollmbridge/v1"
)

type message struct {
	Role    string  `json:"role"`
	Content *string `json:"content"`
}

type body struct {
	Model               string    `json:"model"`
	Messages            []message `json:"messages"`
	Stream              bool      `json:"stream"`
	Temperature         *float64  `json:"temperature,omitempty"`
	TopP                *float64  `json:"top_p,omitempty"`
	MaxTokens           *int32    `json:"max_tokens,omitempty"`
	MaxCompletionTokens *int32    `json:"max_completion_tokens,omitempty"`
	Seed                *int64    `json:"seed,omitempty"`
	PresencePenalty     *float64  `json:"presence_penalty,omitempty"`
	FrequencyPenalty    *float64  `json:"frequency_penalty,omitempty"`
}

type usage struct {
	PromptTokens     *int64 `json:"prompt_tokens"`
	CompletionTokens *int64 `json:"completion_tokens"`
	TotalTokens      *int64 `json:"total_tokens"`
}

// delta is a message, whole or in parts.
type delta struct {
	Role    *string `json:"role"`
	Content *string `json:"content"`
}

type choice struct {
	Index        int32           `json:"index"`
	FinishReason *string         `json:"finish_reason"`
	Message      json.RawMessage `json:"message"`
	Delta        json.RawMessage `json:"delta"`
}

type completion struct {
	ID                string            `json:"id"`
	Object            string            `json:"object"`
	Created           int64             `json:"created"`
	Model             string            `json:"model"`
	SystemFingerprint *string           `json:"system_fingerprint"`
	ServiceTier       *string           `json:"service_tier"`
	EpisodeID         *string           `json:"episode_id"`
	Choices           []json.RawMessage `json:"choices"`
	Usage             json.RawMessage   `json:"usage"`
}

// The keys of each level; with -keep, all others go to its extra_json.
var (
	completionKeys = keys("id", "object", "created", "model", "system_fingerprint", "service_tier", "episode_id", "choices", "usage")
	choiceKeys     = keys("index", "finish_reason", "message", "delta")
	deltaKeys      = keys("role", "content")
	usageKeys      = keys("prompt_tokens", "completion_tokens", "total_tokens")
)

func keys(names ...string) map[string]bool {
	known := make(map[string]bool, len(names))
	for _, name := range names {
		known[name] = true
	}
	return known
}

func encodeBody(request *pb.CreateChatCompletionRequest, stream bool) ([]byte, error) {
	messages := make([]message, len(request.GetMessages()))
	for at, each := range request.GetMessages() {
		messages[at].Role = each.GetRole()
		if text, ok := each.GetContent().(*pb.ChatMessage_Text); ok {
			messages[at].Content = &text.Text
		}
	}
	return json.Marshal(body{
		Model:               request.GetModel(),
		Messages:            messages,
		Stream:              stream,
		Temperature:         request.Temperature,
		TopP:                request.TopP,
		MaxTokens:           request.MaxTokens,
		MaxCompletionTokens: request.MaxCompletionTokens,
		Seed:                request.Seed,
		PresencePenalty:     request.PresencePenalty,
		FrequencyPenalty:    request.FrequencyPenalty,
	})
}

func decodeReply(data []byte, keep bool) (*pb.CreateChatCompletionResponse, error) {
	var from completion
	extra, err := decode(data, &from, completionKeys, keep)
	if err != nil {
		return nil, err
	}
	reply := &pb.CreateChatCompletionResponse{
		Id: from.ID, Object: from.Object, Created: from.Created, Model: from.Model, EpisodeId: from.EpisodeID,
		SystemFingerprint: from.SystemFingerprint, ServiceTier: from.ServiceTier, ExtraJson: extra,
	}
	if reply.Usage, err = decodeUsage(from.Usage, keep); err != nil {
		return nil, err
	}
	for _, raw := range from.Choices {
		var each choice
		into := &pb.Choice{Message: &pb.ChatMessage{}}
		if into.ExtraJson, err = decode(raw, &each, choiceKeys, keep); err != nil {
			return nil, err
		}
		var text delta
		if into.Message.ExtraJson, err = decode(each.Message, &text, deltaKeys, keep); err != nil {
			return nil, err
		}
		into.Index, into.FinishReason = each.Index, each.FinishReason
		if text.Role != nil {
			into.Message.Role = *text.Role
		}
		if text.Content != nil {
			into.Message.Content = &pb.ChatMessage_Text{Text: *text.Content}
		}
		reply.Choices = append(reply.Choices, into)
	}
	return reply, nil
}

func decodeChunk(data []byte, keep bool) (*pb.StreamChatCompletionResponse, error) {
	var from completion
	extra, err := decode(data, &from, completionKeys, keep)
	if err != nil {
		return nil, err
	}
	chunk := &pb.StreamChatCompletionResponse{
		Id: from.ID, Object: from.Object, Created: from.Created, Model: from.Model, EpisodeId: from.EpisodeID,
		SystemFingerprint: from.SystemFingerprint, ServiceTier: from.ServiceTier, ExtraJson: extra,
	}
	if chunk.Usage, err = decodeUsage(from.Usage, keep); err != nil {
		return nil, err
	}
	for _, raw := range from.Choices {
		var each choice
		into := &pb.ChoiceDelta{Delta: &pb.MessageDelta{}}
		if into.ExtraJson, err = decode(raw, &each, choiceKeys, keep); err != nil {
			return nil, err
		}
		var text delta
		if into.Delta.ExtraJson, err = decode(each.Delta, &text, deltaKeys, keep); err != nil {
			return nil, err
		}
		into.Index, into.FinishReason = each.Index, each.FinishReason
		into.Delta.Role, into.Delta.Content = text.Role, text.Content
		chunk.Choices = append(chunk.Choices, into)
	}
	return chunk, nil
}

func decodeUsage(data json.RawMessage, keep bool) (*pb.Usage, error) {
	if len(data) == 0 || string(data) == "null" {
		return nil, nil
	}
	var from usage
	extra, err := decode(data, &from, usageKeys, keep)
	if err != nil {
		return nil, err
	}
	return &pb.Usage{
		PromptTokens: from.PromptTokens, CompletionTokens: from.CompletionTokens, TotalTokens: from.TotalTokens,
		ExtraJson: extra,
	}, nil
}

// decode fills a struct from an object; with keep it also returns the object's other keys, as JSON text.
func decode(data []byte, into any, known map[string]bool, keep bool) (map[string]string, error) {
	if len(data) == 0 {
		return nil, nil
	}
	if err := json.Unmarshal(data, into); err != nil || !keep {
		return nil, err
	}
	var all map[string]json.RawMessage
	if err := json.Unmarshal(data, &all); err != nil {
		return nil, err
	}
	var extra map[string]string
	for key, value := range all {
		if !known[key] {
			if extra == nil {
				extra = make(map[string]string)
			}
			extra[key] = string(value)
		}
	}
	return extra, nil
}
