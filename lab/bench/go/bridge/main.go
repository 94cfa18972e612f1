// (c) What a good Go developer writes in an afternoon: grpc-go in front, net/http and encoding/json behind.
//
//	bridge -upstream URL [-keep] [-tls FOLDER]
//
// Roles, texts, sampling and limits cross; tools, images and error details do not. Keys that the structs do not know are
// dropped, or with -keep go to extra_json, level by level, as JSON text.
package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"io"
	"net/http"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "ollmbridge.example/bench/gen/ollmbridge/v1"
	"ollmbridge.example/bench/serve"
)

const eventBytesMax = 8 << 20

var statuses = map[int]codes.Code{
	400: codes.InvalidArgument,
	401: codes.Unauthenticated,
	403: codes.PermissionDenied,
	404: codes.NotFound,
	429: codes.ResourceExhausted,
}

type bridge struct {
	pb.UnimplementedChatCompletionServiceServer
	client *http.Client
	url    string
	keep   bool
}

func main() {
	upstream := flag.String("upstream", "", "the URL of the gateway")
	keep := flag.Bool("keep", false, "keep unknown keys")
	folder := flag.String("tls", "", "the folder of the certificates")
	flag.Parse()
	transport := &http.Transport{MaxIdleConnsPerHost: 1000, DisableCompression: true}
	if *folder != "" {
		transport.TLSClientConfig = serve.Trust(*folder)
	}
	service := &bridge{client: &http.Client{Transport: transport}, url: *upstream + "/v1/chat/completions", keep: *keep}
	serve.Run(*folder, func(server *grpc.Server) { pb.RegisterChatCompletionServiceServer(server, service) })
}

func (b *bridge) CreateChatCompletion(
	ctx context.Context, request *pb.CreateChatCompletionRequest,
) (*pb.CreateChatCompletionResponse, error) {
	response, err := b.post(ctx, request, false)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, toStatus(err)
	}
	reply, err := decodeReply(data, b.keep)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return reply, nil
}

func (b *bridge) StreamChatCompletion(
	request *pb.CreateChatCompletionRequest, stream grpc.ServerStreamingServer[pb.StreamChatCompletionResponse],
) error {
	response, err := b.post(stream.Context(), request, true)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	lines := bufio.NewScanner(response.Body)
	lines.Buffer(make([]byte, 0, 4096), eventBytesMax)
	for lines.Scan() {
		data, found := bytes.CutPrefix(lines.Bytes(), []byte("data:"))
		if !found {
			continue
		}
		data = bytes.TrimSpace(data)
		if bytes.Equal(data, []byte("[DONE]")) {
			return nil
		}
		chunk, err := decodeChunk(data, b.keep)
		if err != nil {
			return status.Error(codes.Internal, err.Error())
		}
		if err := stream.Send(chunk); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil {
		return toStatus(err)
	}
	return status.Error(codes.Aborted, "the stream ended without [DONE]")
}

func (b *bridge) post(ctx context.Context, request *pb.CreateChatCompletionRequest, stream bool) (*http.Response, error) {
	body, err := encodeBody(request, stream)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	post, err := http.NewRequestWithContext(ctx, http.MethodPost, b.url, bytes.NewReader(body))
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	post.Header.Set("content-type", "application/json")
	response, err := b.client.Do(post)
	if err != nil {
		return nil, toStatus(err)
	}
	if response.StatusCode != http.StatusOK {
		defer response.Body.Close()
		message, _ := io.ReadAll(io.LimitReader(response.Body, 4096))
		code, found := statuses[response.StatusCode]
		if !found {
			code = codes.Unavailable
		}
		return nil, status.Error(code, string(message))
	}
	return response, nil
}

func toStatus(err error) error {
	switch {
	case errors.Is(err, context.Canceled):
		return status.FromContextError(context.Canceled).Err()
	case errors.Is(err, context.DeadlineExceeded):
		return status.FromContextError(context.DeadlineExceeded).Err()
	default:
		return status.Error(codes.Unavailable, err.Error())
	}
}
