package access

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

// TLS gives the configuration of a server with the certificate and key of two files, which are read again when they
// change; nil if none is named. With clientCA, a file of certificates, clients must show one that was issued by one of
// those; its common name is the subject of the credential.
func TLS(certFile, keyFile, clientCA string) (*tls.Config, error) {
	if certFile == "" && keyFile == "" {
		if clientCA != "" {
			return nil, errors.New("clients' certificates need a certificate and key of the server's own")
		}
		return nil, nil
	}
	if certFile == "" || keyFile == "" {
		return nil, errors.New("want both a certificate and its key")
	}
	p := &pair{certFile: certFile, keyFile: keyFile}
	if _, err := p.get(nil); err != nil {
		return nil, err
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: p.get}
	if clientCA != "" {
		pem, err := os.ReadFile(clientCA) // #nosec G304 G703 -- whoever configures the program names it
		if err != nil {
			return nil, err
		}
		c.ClientCAs = x509.NewCertPool()
		if !c.ClientCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s: no certificate in it", clientCA)
		}
		c.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return c, nil
}

// pair is a certificate and its key, as the files say.
type pair struct {
	certFile, keyFile string

	mu      sync.Mutex
	read    time.Time
	changed time.Time
	cert    *tls.Certificate
}

func (p *pair) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if p.cert != nil && now.Sub(p.read) < rereadAfter {
		return p.cert, nil
	}
	p.read = now
	info, err := os.Stat(p.certFile)
	if err != nil {
		return p.last(err)
	}
	if p.cert != nil && info.ModTime().Equal(p.changed) {
		return p.cert, nil
	}
	cert, err := tls.LoadX509KeyPair(p.certFile, p.keyFile)
	if err != nil {
		return p.last(err) // while the two files are being replaced they may not fit
	}
	p.cert, p.changed = &cert, info.ModTime()
	return p.cert, nil
}

// last gives the last certificate that could be read, else err.
func (p *pair) last(err error) (*tls.Certificate, error) {
	if p.cert != nil {
		return p.cert, nil
	}
	return nil, err
}
