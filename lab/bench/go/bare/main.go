// (b) A bare grpc-go server that answers from memory: the limit of a bridge's front in Go.
//
//	bare -answers DIRECTORY [-tls FOLDER]
//
// `reply`, `first`, `chunk` and `last` in the directory are the bytes of the bridge's own answers. The model in the
// request says how many chunks and how far apart, in the words that the upstream of the others reads.
package main

import (
	"context"
	"flag"
	"log"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	"google.golang.org/grpc"

	"golang.org/x/sys/unix"

	"ollmbridge.example/bench/serve"
)

var clocks = regexp.MustCompile(`\d{9,} \d{9,} `)

// raw is a codec that leaves a message's bytes as they are.
type raw struct{}

func (raw) Name() string                      { return "proto" }
func (raw) Marshal(value any) ([]byte, error) { return *value.(*[]byte), nil }
func (raw) Unmarshal(data []byte, into any) error {
	*into.(*[]byte) = data
	return nil
}

type answers struct{ reply, first, chunk, last []byte }

func main() {
	folder := flag.String("answers", "", "the directory of the answers")
	tls := flag.String("tls", "", "the folder of the certificates")
	flag.Parse()
	read := func(name string) []byte {
		data, err := os.ReadFile(filepath.Join(*folder, name))
		if err != nil {
			log.Fatal(err)
		}
		return data
	}
	given := &answers{read("reply"), read("first"), read("chunk"), read("last")}
	description := grpc.ServiceDesc{
		ServiceName: "ollmbridge.v1.ChatCompletionService",
		HandlerType: (*any)(nil),
		Methods:     []grpc.MethodDesc{{MethodName: "CreateChatCompletion", Handler: create}},
		Streams:     []grpc.StreamDesc{{StreamName: "StreamChatCompletion", Handler: stream, ServerStreams: true}},
	}
	register := func(server *grpc.Server) { server.RegisterService(&description, given) }
	serve.Run(*tls, register, grpc.ForceServerCodec(raw{}))
}

func create(server any, _ context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
	var request []byte
	if err := decode(&request); err != nil {
		return nil, err
	}
	given := server.(*answers)
	if size := number(request, "bytes", 0); size > 0 {
		reply := big(given.reply, size)
		return &reply, nil
	}
	return &given.reply, nil
}

func stream(server any, call grpc.ServerStream) error {
	given := server.(*answers)
	var request []byte
	if err := call.RecvMsg(&request); err != nil {
		return err
	}
	interval := time.Duration(number(request, "interval_ms", 0)) * time.Millisecond
	if err := call.SendMsg(&given.first); err != nil {
		return err
	}
	start := time.Now()
	for place := range number(request, "chunks", 10) {
		chunk := given.chunk
		if interval > 0 {
			due := start.Add(time.Duration(place+1) * interval)
			select {
			case <-time.After(time.Until(due)):
			case <-call.Context().Done():
				return call.Context().Err()
			}
			chunk = setClocks(chunk, due)
		}
		if err := call.SendMsg(&chunk); err != nil {
			return err
		}
	}
	return call.SendMsg(&given.last)
}

// number returns an option of the model, such as `chunks` in `scenario::pace?chunks=10`.
func number(request []byte, name string, otherwise int) int {
	found := options[name].FindSubmatch(request)
	if found == nil {
		return otherwise
	}
	value, _ := strconv.Atoi(string(found[1]))
	return value
}

var options = map[string]*regexp.Regexp{
	"bytes":       regexp.MustCompile(`[?&]bytes=(\d+)`),
	"chunks":      regexp.MustCompile(`[?&]chunks=(\d+)`),
	"interval_ms": regexp.MustCompile(`[?&]interval_ms=(\d+)`),
}

// setClocks returns the chunk with the times at which it was due and is sent; both are as long as those it had.
func setClocks(chunk []byte, due time.Time) []byte {
	var now unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &now)
	sent := now.Nano()
	words := strconv.FormatInt(sent+time.Until(due).Nanoseconds(), 10) + " " + strconv.FormatInt(sent, 10) + " "
	return clocks.ReplaceAllLiteral(chunk, []byte(words))
}
