package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	pb "ollmbridge.example/client/gen/ollmbridge/v1"
	"ollmbridge.example/client/kit"
)

const (
	model         = "near_qwen3_30b"
	weatherSchema = `{"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]}`
	answerSchema  = `{"type": "object", "required": ["zulu", "alpha"], "properties": ` +
		`{"zulu": {"type": "integer", "maximum": 9007199254740993}, "alpha": {"type": "string"}}}`
)

// unary gets a whole completion, and a request id that comes back: a unary call returns headers as trailers.
func (c *client) unary(ctx context.Context) (line, error) {
	request := newRequest(model, "Grüße, 世界 🌍")
	request.Temperature = proto.Float64(0.2)
	request.MaxTokens = proto.Int32(64)
	ctx = metadata.AppendToOutgoingContext(ctx, "x-request-id", "clients-unary")
	var trailer metadata.MD
	reply, err := c.chat.CreateChatCompletion(ctx, request, grpc.Trailer(&trailer))
	if err != nil {
		return nil, err
	}
	choice, usage := reply.GetChoices()[0], reply.GetUsage()
	return line{
		"text":          choice.GetMessage().GetText(),
		"finish_reason": choice.FinishReason,
		"usage": line{
			"prompt_tokens":     usage.GetPromptTokens(),
			"completion_tokens": usage.GetCompletionTokens(),
			"total_tokens":      usage.GetTotalTokens(),
		},
		"system_fingerprint": reply.SystemFingerprint,
		"service_tier":       reply.ServiceTier,
		"request_id":         strings.Join(trailer.Get("x-request-id"), ","),
	}, nil
}

// stream reads a streamed completion. Only io.EOF means that the completion is whole.
func (c *client) stream(ctx context.Context) (line, error) {
	request := newRequest(model, "Hello")
	request.StreamOptions = &pb.StreamOptions{IncludeUsage: proto.Bool(true)}
	stream, err := c.chat.StreamChatCompletion(ctx, request)
	if err != nil {
		return nil, err
	}
	seen := &watched{stream: stream}
	reply, err := kit.Accumulate(seen)
	if err != nil {
		return nil, err
	}
	contents := []*string{}
	for _, delta := range seen.deltas {
		contents = append(contents, delta.Content)
	}
	choice := reply.GetChoices()[0]
	return line{
		"contents":      contents,
		"text":          choice.GetMessage().GetText(),
		"finish_reason": choice.FinishReason,
		"total_tokens":  reply.GetUsage().GetTotalTokens(),
	}, nil
}

// watched is a stream whose deltas are kept on the way.
type watched struct {
	stream grpc.ServerStreamingClient[pb.StreamChatCompletionResponse]
	deltas []*pb.MessageDelta
}

func (w *watched) Recv() (*pb.StreamChatCompletionResponse, error) {
	chunk, err := w.stream.Recv()
	for _, choice := range chunk.GetChoices() {
		w.deltas = append(w.deltas, choice.GetDelta())
	}
	return chunk, err
}

// tools joins the fragments of a tool call, and sends the call back with the tool's result.
func (c *client) tools(ctx context.Context) (line, error) {
	request := newRequest(model, "What is the weather in Paris?")
	request.Tools = []*pb.Tool{{Tool: &pb.Tool_Function{Function: &pb.FunctionTool{
		Name:           "get_weather",
		Description:    proto.String("The weather at a place."),
		ParametersJson: proto.String(weatherSchema),
	}}}}
	stream, err := c.chat.StreamChatCompletion(ctx, request)
	if err != nil {
		return nil, err
	}
	seen := &watched{stream: stream}
	streamed, err := kit.Accumulate(seen)
	if err != nil {
		return nil, err
	}
	fragments := 0
	for _, delta := range seen.deltas {
		fragments += len(delta.GetToolCalls())
	}

	choice := streamed.GetChoices()[0]
	request.Messages = append(request.Messages, choice.GetMessage())
	shown := []line{}
	for _, call := range choice.GetMessage().GetToolCalls() {
		var arguments struct{ Location string }
		if err := json.Unmarshal([]byte(call.GetFunction().GetArguments()), &arguments); err != nil {
			return nil, err
		}
		request.Messages = append(request.Messages, &pb.ChatMessage{
			Role:       "tool",
			ToolCallId: proto.String(call.GetId()),
			Content:    &pb.ChatMessage_Text{Text: "21 degrees in " + arguments.Location},
		})
		shown = append(shown, line{
			"id": call.GetId(), "name": call.GetFunction().GetName(), "arguments": call.GetFunction().GetArguments(),
		})
	}
	reply, err := c.chat.CreateChatCompletion(ctx, request)
	if err != nil {
		return nil, err
	}
	return line{
		"fragments": fragments, "tool_calls": shown, "finish_reason": choice.FinishReason, "text": firstText(reply),
	}, nil
}

// ollmOptions sets every option of the gateway.
func (c *client) ollmOptions(ctx context.Context) (line, error) {
	request := newRequest("ollm::function_name::scenario::mirror", "Hello")
	request.Ollm = &pb.OllmOptions{
		Tags: map[string]string{"team": "search"},
		CacheOptions: &pb.CacheOptions{
			Enabled:   proto.String("read_only"),
			MaxAgeS:   proto.Int64(60),
			ExtraJson: map[string]string{"scope": `"team"`},
		},
		Dryrun:             proto.Bool(true),
		VariantName:        proto.String("v2"),
		EpisodeId:          proto.String("01890a5d-ac96-774b-bcce-b302099a8057"),
		DenyUnknownFields:  proto.Bool(false),
		IncludeRawUsage:    proto.Bool(true),
		IncludeRawResponse: proto.Bool(true),
		ExtraJson:          map[string]string{"note": `{"n": 9007199254740993}`},
	}
	reply, err := c.chat.CreateChatCompletion(ctx, request)
	if err != nil {
		return nil, err
	}
	return line{
		"request":      firstText(reply),
		"model":        reply.GetModel(),
		"episode_id":   reply.EpisodeId,
		"raw_usage":    reply.RawUsageJson != nil,
		"raw_response": reply.RawResponseJson != nil,
	}, nil
}

// extraJSON sends and reads JSON text that crosses unchanged.
func (c *client) extraJSON(ctx context.Context) (line, error) {
	request := newRequest("scenario::mirror", "Hello")
	request.Messages[0].ExtraJson = map[string]string{"mark": "[18446744073709551615]"}
	request.ResponseFormat = &pb.ResponseFormat{Format: &pb.ResponseFormat_JsonSchema_{
		JsonSchema: &pb.ResponseFormat_JsonSchema{
			Name: "answer", Strict: proto.Bool(true), SchemaJson: proto.String(answerSchema),
		},
	}}
	request.ExtraJson = map[string]string{"exact": `{"z": 9007199254740993, "price": 1.10, "exponent": 1e2, "a": null}`}
	mirrored, err := c.chat.CreateChatCompletion(ctx, request)
	if err != nil {
		return nil, err
	}
	reply, err := c.chat.CreateChatCompletion(ctx, newRequest("scenario::unknown_fields", "Hello"))
	if err != nil {
		return nil, err
	}
	return line{
		"request": firstText(mirrored),
		"reply":   reply.GetExtraJson(),
		"message": reply.GetChoices()[0].GetMessage().GetExtraJson(),
	}, nil
}

// failure unpacks a failure with all its details.
func (c *client) failure(ctx context.Context) (line, error) {
	ctx = metadata.AppendToOutgoingContext(ctx, "x-request-id", "clients-error")
	failure, err := c.expectFailure(ctx, newRequest("scenario::error?status=400&code=context_length_exceeded&param=messages[0].content"+
		"&message=the+prompt+is+too+long&retry_after=2.5&raw=1", "Hello"))
	if err != nil {
		return nil, err
	}
	upstream := failure.Upstream
	return line{
		"code":             failure.Code,
		"message":          failure.Message,
		"error_info":       line{"reason": failure.Reason, "domain": failure.Domain, "metadata": failure.Metadata},
		"retry_after_s":    seconds(failure.RetryAfter),
		"field_violations": violations(failure),
		"request_id":       failure.RequestID,
		"upstream_error": line{
			"http_status": upstream.GetHttpStatus(),
			"message":     upstream.Message,
			"type":        upstream.Type,
			"code":        upstream.Code,
			"param":       upstream.Param,
			"extra_json":  upstream.GetExtraJson(),
			"truncated":   upstream.GetTruncated(),
		},
	}, nil
}

// largeError gets a failure whose message is larger than trailers may be.
func (c *client) largeError(ctx context.Context) (line, error) {
	failure, err := c.expectFailure(ctx, newRequest("scenario::error?status=500&size=8192", "Hello"))
	if err != nil {
		return nil, err
	}
	whole := func(text string) bool { return text != "" && strings.Trim(text, "错") == "" }
	return line{
		"code":                   failure.Code,
		"reason":                 failure.Reason,
		"truncated":              failure.Upstream.GetTruncated(),
		"message_whole":          whole(failure.Message),
		"upstream_message_whole": whole(failure.UpstreamWords),
	}, nil
}

// deadline reads a stream that stalls, with a deadline.
func (c *client) deadline(ctx context.Context) (line, error) {
	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	chunks, err := c.collect(ctx, newRequest("scenario::stall?after=2", "Hello"))
	took := time.Since(start)
	return line{
		"text":   joinText(chunks),
		"code":   kit.ReadFailure(err).Code,
		"within": 900*time.Millisecond <= took && took < 5*time.Second,
	}, nil
}

// cancel cancels a stream after its third chunk.
func (c *client) cancel(ctx context.Context) (line, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.chat.StreamChatCompletion(ctx, newRequest("scenario::stall?after=3", "Hello"))
	if err != nil {
		return nil, err
	}
	var chunks []*pb.StreamChatCompletionResponse
	for len(chunks) < 3 {
		chunk, err := stream.Recv()
		if err != nil {
			return nil, err
		}
		chunks = append(chunks, chunk)
	}
	cancel()
	_, err = stream.Recv()
	return line{"text": joinText(chunks), "code": kit.ReadFailure(err).Code}, nil
}

// retry makes a call that is refused twice, and that the service config retries after the gateway's wait; and a call that it does
// not retry, since the wait is too long.
func (c *client) retry(ctx context.Context) (line, error) {
	limited, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	flaky := newRequest("scenario::flaky?times=2&status=429&retry_after_ms=400", "Hello")
	reply, err := c.chat.CreateChatCompletion(limited, flaky)
	if err != nil {
		return nil, err
	}
	large, err := c.chat.CreateChatCompletion(ctx, newRequest("scenario::flaky?times=1&status=503", strings.Repeat("x", 3_000_000)))
	if err != nil {
		return nil, err
	}
	failure, err := c.expectFailure(ctx, newRequest("scenario::rate_limited?retry_after=61", "Hello"))
	if err != nil {
		return nil, err
	}
	return line{
		"text":          firstText(reply),
		"large":         utf8.RuneCountInString(firstText(large)),
		"given_up":      failure.Code,
		"retry_after_s": seconds(failure.RetryAfter),
	}, nil
}

// health checks the server, the service, and a service that does not exist.
func (c *client) health(ctx context.Context) (line, error) {
	health := healthpb.NewHealthClient(c.conn)
	overall, err := health.Check(ctx, &healthpb.HealthCheckRequest{})
	if err != nil {
		return nil, err
	}
	service, err := health.Check(ctx, &healthpb.HealthCheckRequest{Service: "ollmbridge.v1.ChatCompletionService"})
	if err != nil {
		return nil, err
	}
	_, unknown := health.Check(ctx, &healthpb.HealthCheckRequest{Service: "no.such.Service"})
	return line{
		"overall": overall.GetStatus().String(),
		"service": service.GetStatus().String(),
		"unknown": kit.ReadFailure(unknown).Code,
	}, nil
}

// largeAnswer gets an answer above the 4 MiB that grpc receives by default.
func (c *client) largeAnswer(ctx context.Context) (line, error) {
	reply, err := c.chat.CreateChatCompletion(ctx, newRequest("scenario::big?size=10000000", "Hello"))
	if err != nil {
		return nil, err
	}
	stream, err := c.chat.StreamChatCompletion(ctx, newRequest("scenario::huge_event?size=10000000", "Hello"))
	if err != nil {
		return nil, err
	}
	streamed, err := kit.Accumulate(stream)
	if err != nil {
		return nil, err
	}
	return line{
		"characters": utf8.RuneCountInString(firstText(reply)), "streamed": utf8.RuneCountInString(firstText(streamed)),
	}, nil
}

// newRequest returns a request with one message of the user.
func newRequest(model, text string) *pb.CreateChatCompletionRequest {
	message := &pb.ChatMessage{Role: "user", Content: &pb.ChatMessage_Text{Text: text}}
	return &pb.CreateChatCompletionRequest{Model: model, Messages: []*pb.ChatMessage{message}}
}

// collect reads a stream to its end. If it fails, it returns the chunks before the failure too.
func (c *client) collect(
	ctx context.Context, request *pb.CreateChatCompletionRequest,
) (chunks []*pb.StreamChatCompletionResponse, err error) {
	stream, err := c.chat.StreamChatCompletion(ctx, request)
	if err != nil {
		return nil, err
	}
	for {
		chunk, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return chunks, nil
		}
		if err != nil {
			return chunks, err
		}
		chunks = append(chunks, chunk)
	}
}

func joinText(chunks []*pb.StreamChatCompletionResponse) string {
	var text strings.Builder
	for _, chunk := range chunks {
		for _, choice := range chunk.GetChoices() {
			text.WriteString(choice.GetDelta().GetContent())
		}
	}
	return text.String()
}

func firstText(reply *pb.CreateChatCompletionResponse) string {
	return reply.GetChoices()[0].GetMessage().GetText()
}
