package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"io"
	"os"
	"path/filepath"

	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "ollmbridge.example/client/gen/ollmbridge/v1"
	"ollmbridge.example/client/kit"
)

// vector is a line of one of the files of ../vectors. JSON has its bytes in base64.
type vector struct {
	Name    string
	Chunks  [][]byte
	Code    codes.Code
	Message string
	Details []byte
}

// accumulate makes the response of each vector's chunks.
func (c *client) accumulate(context.Context) (line, error) {
	vectors, err := readVectors("accumulate")
	if err != nil {
		return nil, err
	}
	responses := line{}
	for _, each := range vectors {
		reply, err := kit.Accumulate(&recorded{each.Chunks})
		if err != nil {
			return nil, err
		}
		packed, err := proto.Marshal(reply)
		if err != nil {
			return nil, err
		}
		responses[each.Name] = base64.StdEncoding.EncodeToString(packed)
	}
	return line{"responses": responses}, nil
}

// recorded is a stream of chunks that came before.
type recorded struct{ left [][]byte }

func (r *recorded) Recv() (*pb.StreamChatCompletionResponse, error) {
	if len(r.left) == 0 {
		return nil, io.EOF
	}
	chunk := &pb.StreamChatCompletionResponse{}
	err := proto.Unmarshal(r.left[0], chunk)
	r.left = r.left[1:]
	return chunk, err
}

// readFailures reads the status of each vector, as grpc-go makes an error of it.
func (c *client) readFailures(context.Context) (line, error) {
	vectors, err := readVectors("failure")
	if err != nil {
		return nil, err
	}
	failures := line{}
	for _, each := range vectors {
		packed := &spb.Status{}
		failed := status.New(each.Code, each.Message)
		if err := proto.Unmarshal(each.Details, packed); err == nil && len(each.Details) > 0 {
			failed = status.FromProto(packed)
		}
		failures[each.Name] = describe(kit.ReadFailure(failed.Err()))
	}
	return line{"failures": failures}, nil
}

func readVectors(kind string) (vectors []vector, err error) {
	text, err := os.ReadFile(filepath.Join(cmp.Or(os.Getenv("VECTORS"), "../vectors"), kind+".jsonl"))
	if err != nil {
		return nil, err
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	for {
		var next vector
		if err := decoder.Decode(&next); err == io.EOF {
			return vectors, nil
		} else if err != nil {
			return nil, err
		}
		vectors = append(vectors, next)
	}
}
