/** Looks every name of the arguments up by InetAddress. */
public class Lookup {
    public static void main(String[] names) {
        for (String name : names) {
            try {
                java.net.InetAddress.getAllByName(name);
            } catch (java.net.UnknownHostException error) {
                System.out.println(error);
            }
        }
    }
}
