// Package serve runs a gRPC server as the benchmarks start one: it prints its address, and takes TLS from a folder.
package serve

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log"
	"math"
	"net"
	"os"
	"path/filepath"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

// Run serves until the process ends. With a folder it takes server.pem, the certificate and its key, from there.
func Run(folder string, register func(*grpc.Server), options ...grpc.ServerOption) {
	options = append(options, grpc.MaxRecvMsgSize(math.MaxInt32))
	if folder != "" {
		pair := filepath.Join(folder, "server.pem")
		certificate, err := tls.LoadX509KeyPair(pair, pair)
		check(err)
		config := &tls.Config{Certificates: []tls.Certificate{certificate}}
		options = append(options, grpc.Creds(credentials.NewTLS(config)))
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	server := grpc.NewServer(options...)
	register(server)
	fmt.Printf("listening on %s\n", listener.Addr())
	check(server.Serve(listener))
}

// Trust returns a client's configuration that trusts the folder's ca.pem.
func Trust(folder string) *tls.Config {
	pem, err := os.ReadFile(filepath.Join(folder, "ca.pem"))
	check(err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	return &tls.Config{RootCAs: roots}
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
