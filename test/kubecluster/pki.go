package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
)

// authority issues the cluster's certificates, into dir: NAME.crt and NAME.key.
type authority struct {
	dir, name string
	cert      *x509.Certificate
	key       crypto.Signer
}

// validity is how long the certificates of a cluster are good for.
const validity = 30 * 24 * time.Hour

func newAuthority(dir, name string) (*authority, error) {
	a := &authority{dir: dir, name: name}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	return a, a.issue(name, template)
}

// client issues a certificate for a user of the API server, and for the server itself at addresses and names.
func (a *authority) client(file, user, group string, addresses []net.IP, names ...string) error {
	subject := pkix.Name{CommonName: user}
	if group != "" {
		subject.Organization = []string{group}
	}
	return a.issue(file, &x509.Certificate{
		Subject: subject, IPAddresses: addresses, DNSNames: names, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	})
}

func (a *authority) issue(file string, template *x509.Certificate) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(validity)
	if template.SerialNumber, err = rand.Int(rand.Reader, big.NewInt(1<<62)); err != nil {
		return err
	}
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		return err
	}
	if a.cert == nil {
		if a.cert, err = x509.ParseCertificate(der); err != nil {
			return err
		}
		a.key = key
	}
	if err := writePEM(filepath.Join(a.dir, file+".crt"), "CERTIFICATE", der); err != nil {
		return err
	}
	return writeKey(filepath.Join(a.dir, file+".key"), key)
}

func writeKey(path string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	return writePEM(path, "EC PRIVATE KEY", der)
}

func writePEM(path, kind string, der []byte) error {
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}

// kubeconfig writes FILE.conf for the user whose certificate is FILE.crt.
func (a *authority) kubeconfig(file, server string) error {
	c := api.NewConfig()
	c.Clusters["cluster"] = &api.Cluster{Server: server, CertificateAuthority: filepath.Join(a.dir, a.name+".crt")}
	c.AuthInfos[file] = &api.AuthInfo{
		ClientCertificate: filepath.Join(a.dir, file+".crt"), ClientKey: filepath.Join(a.dir, file+".key"),
	}
	c.Contexts["cluster"] = &api.Context{Cluster: "cluster", AuthInfo: file}
	c.CurrentContext = "cluster"
	return clientcmd.WriteToFile(*c, filepath.Join(a.dir, file+".conf"))
}

// issueAll makes every certificate, key and kubeconfig of the cluster in dir.
func issueAll(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	ca, err := newAuthority(dir, "ca")
	if err != nil {
		return err
	}
	front, err := newAuthority(dir, "front-proxy-ca")
	if err != nil {
		return err
	}
	accounts, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	if err := writeKey(filepath.Join(dir, "accounts.key"), accounts); err != nil {
		return err
	}
	inside := "https://" + net.JoinHostPort(controlPlane.address, apiPort)
	outside := "https://" + net.JoinHostPort("127.0.0.1", apiPort)
	type user struct {
		file, name, group, server string
	}
	users := []user{
		{"admin", "cluster-admin", "system:masters", outside},
		{"controllers", "system:kube-controller-manager", "", inside},
		{"scheduler", "system:kube-scheduler", "", inside},
		{"proxy", "system:kube-proxy", "", inside},
	}
	for _, n := range nodes {
		users = append(users, user{n.name, "system:node:" + n.name, "system:nodes", inside})
	}
	for _, u := range users {
		var addresses []net.IP
		var names []string
		for _, n := range nodes {
			if n.name == u.file {
				addresses, names = []net.IP{net.ParseIP(n.address)}, []string{n.name}
			}
		}
		if err := ca.client(u.file, u.name, u.group, addresses, names...); err != nil {
			return err
		}
		if err := ca.kubeconfig(u.file, u.server); err != nil {
			return err
		}
	}
	err = ca.client("apiserver", "kube-apiserver", "",
		[]net.IP{net.ParseIP(apiService), net.ParseIP(controlPlane.address), net.ParseIP("127.0.0.1")},
		"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local")
	if err != nil {
		return err
	}
	if err := ca.client("kubelet-client", "apiserver-kubelet-client", "system:masters", nil); err != nil {
		return err
	}
	return front.client("front-proxy", "front-proxy-client", "", nil)
}
