package past

import (
	"net"
	"net/http"

	"github.com/dnstrail/dnstrail/tracer/pipeline"
)

func serveOn(l net.Listener, p *Past) func() {
	s := &http.Server{Handler: p.Handler(func() pipeline.Stats { return pipeline.Stats{} })}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(l) // until it is closed
	}()
	return func() {
		_ = s.Close()
		<-done
	}
}
