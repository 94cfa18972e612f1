package main

import (
	"log"
	"strings"
	"sync"

	"google.golang.org/protobuf/proto"

	pb "ollmbridge.example/bench/gen/ollmbridge/v1"
)

var bigs sync.Map

// big returns the reply with so many bytes of content, made once.
func big(reply []byte, size int) []byte {
	if kept, ok := bigs.Load(size); ok {
		return kept.([]byte)
	}
	var message pb.CreateChatCompletionResponse
	if err := proto.Unmarshal(reply, &message); err != nil {
		log.Fatal(err)
	}
	message.Choices[0].Message.Content = &pb.ChatMessage_Text{Text: strings.Repeat("x", size)}
	data, err := proto.Marshal(&message)
	if err != nil {
		log.Fatal(err)
	}
	bigs.Store(size, data)
	return data
}
