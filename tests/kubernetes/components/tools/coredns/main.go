// CoreDNS with the plugins that the cluster's Corefile names, and none of the others: it is built in
// a fraction of the time.
package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/kubernetes"
)

func init() {
	// In the order in which a query passes them.
	dnsserver.Directives = []string{"errors", "kubernetes"}
}

func main() { coremain.Run() }
